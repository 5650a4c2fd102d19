"""Resolved settings as TOML that reproduces the run."""

from itertools import groupby
from pathlib import Path
from typing import Any

from common.config.section import FlagField, Section, flags_of


def to_toml(settings: Section) -> str:
    """Every setting of `settings` as a flat TOML, headed by group; `--config_file` reads it back to equal settings.

    A setting without a value (None) is left out, since TOML has no word for it; secrets are left out too.
    """
    parts = []
    for group, fields in groupby(flags_of(type(settings)), key=lambda field: field.group):
        lines = [line for field in fields if (line := _line(settings, field))]
        if lines:
            parts.append("\n".join([f"# {group}", *lines]))
    return "\n\n".join(parts) + "\n"


def value_of(settings: Section, field: FlagField) -> Any:
    """The value that `settings` holds for one of its flags."""
    section: Any = settings
    for name in field.path:
        section = getattr(section, name)
    return getattr(section, field.name)


def is_given(settings: Section, field: FlagField) -> bool:
    """Whether the user set the flag (on the command line, in a file, or from Python)."""
    section: Any = settings
    for name in field.path:
        section = getattr(section, name)
    return field.name in section.model_fields_set


def _line(settings: Section, field: FlagField) -> str:
    import tomlkit

    value = value_of(settings, field)
    if value is None:
        return ""
    if field.is_secret:
        return f"# {field.name} is set and not shown"
    return f"{field.name} = {tomlkit.item(_plain(value)).as_string()}"


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value
