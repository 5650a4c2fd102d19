"""Command line and settings file to one checked, frozen settings object."""

from collections.abc import Iterable, Mapping, Sequence
import os
from pathlib import Path
import sys
from typing import Any, TypeVar

import pydantic
from pydantic_core import ErrorDetails

from common.config.command_line import help_text, read_words
from common.config.foreign import Foreign
from common.config.section import FlagField, Section, flags_of, not_a_choice
from common.config.show import is_given
from common.config.toml import read_json, read_toml
from common.errors import ConfigError, nearest, raise_all
from common.logs import get_logger

log = get_logger(__name__)
S = TypeVar("S", bound=Section)


def parse(cls: type[S], argv: Sequence[str] | None = None, *, prog: str, description: str, epilog: str = "",
          foreign: Iterable[Foreign] = ()) -> S:
    """Settings from `argv` (default: the process's) and the TOML that `--config_file` names.

    Raises ConfigError that lists every problem at once. `--help` prints and ends the process with code 0.
    """
    foreigners = {entry.name: entry for entry in foreign}
    spellings = _spellings(cls)
    own = {**spellings, "config_file": _CONFIG_FILE}
    words = read_words(sys.argv[1:] if argv is None else argv, own, foreigners)
    if words.wants_help:
        sys.stdout.write(help_text(flags_of(cls), prog=prog, description=description, epilog=epilog))
        raise SystemExit(0)
    problems = list(words.problems)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    file_foreign: list[str] = []
    if config_file := words.values.pop("config_file", None):
        values, origins, file_foreign = _read_file(config_file, spellings, foreigners, problems)
    for name in words.values:
        origins.pop(name, None)
    values.update(words.values)
    for name in dict.fromkeys([*words.foreign, *file_foreign]):
        if foreigners[name].status == "accepted":
            log.info(foreigners[name].message)
        else:
            problems.append(foreigners[name].message)
    settings = _build(cls, values, origins, problems, prog)
    for field in flags_of(cls):
        if field.differs and is_given(settings, field):
            log.info("note: --%s: %s", field.name, field.differs)
    return settings


def from_values(cls: type[S], values: Mapping[str, Any]) -> S:
    """Settings from flat flag names and Python values. Raises ConfigError that lists every problem at once."""
    spellings = _spellings(cls)
    problems = [f"unknown setting '{name}'{nearest(name, spellings)}" for name in values if name not in spellings]
    known = {spellings[name].name: value for name, value in values.items() if name in spellings}
    return _build(cls, known, {}, problems, cls.__name__)


_CONFIG_FILE = FlagField("config_file", (), str, pydantic.fields.FieldInfo(), "")


def _spellings(cls: type[Section]) -> dict[str, FlagField]:
    spellings: dict[str, FlagField] = {}
    for field in flags_of(cls):
        for name in filter(None, (field.name, field.alias)):
            assert name not in spellings, f"{cls.__name__} declares --{name} twice"
            spellings[name] = field
    return spellings


def _read_file(path: str, spellings: Mapping[str, FlagField], foreign: Mapping[str, Foreign], problems: list[str]
               ) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Values, the place of each for messages, and the foreign flags of a settings file; tables are only headings."""
    file = Path(path)
    if not file.exists() and not file.suffix:
        file = file.with_suffix(".toml")
    try:
        document = read_json(file) if file.suffix.lower() == ".json" else read_toml(file)
    except ConfigError as error:
        problems.append(str(error))
        return {}, {}, []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    strangers = []
    for keys, value in _flatten(document.data):
        name, where = keys[-1], document.where(*keys)
        if name in spellings:
            values[spellings[name].name] = value
            origins[spellings[name].name] = where
        elif name in foreign:
            # A switch that is off, or an empty value, asks for nothing.
            strangers += [name] if value not in (False, "", []) else []
        elif name != "config_file":
            problems.append(f"{where}: unknown key '{name}'{nearest(name, [*spellings, *foreign])}")
    return values, origins, strangers


def _flatten(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, (*path, key))
        else:
            yield (*path, key), value


def check_values(cls: type[S], values: Mapping[str, Any], origins: Mapping[str, str], problems: list[str]) -> S | None:
    """Settings from flat flag names; None where something is wrong, which is added to `problems`.

    `origins` tells where a value stands (file and line), for the sentence about it.
    """
    fields = {field.name: field for field in flags_of(cls)}
    nested: dict[str, Any] = {}
    for name, value in values.items():
        table = _table(nested, fields[name].path)
        table[name] = _as_choice(fields[name], value)
    _open_sections(cls, nested)
    try:
        return cls.model_validate(nested)
    except pydantic.ValidationError as error:
        for fault in error.errors():
            problems += _sentences(fault, fields, origins)
    return None


def _build(cls: type[S], values: Mapping[str, Any], origins: Mapping[str, str], problems: list[str], heading: str) -> S:
    settings = check_values(cls, values, origins, problems)
    raise_all(problems, ConfigError, os.path.basename(heading))
    assert settings is not None
    return settings


def _table(nested: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for name in path:
        nested = nested.setdefault(name, {})
    return nested


def _open_sections(cls: type[Section], nested: dict[str, Any]) -> None:
    """Give every nested section at least an empty table, so that its missing flags are told by their own names."""
    for name, info in cls.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            _open_sections(info.annotation, nested.setdefault(name, {}))


def _as_choice(field: FlagField, value: Any) -> Any:
    """Turn the text of a numeric choice into that number, and true and false where a switch is meant; leave everything
    else to pydantic."""
    if field.switch is not None and isinstance(value, bool):
        return field.switch[value]
    if field.choices and isinstance(value, str):
        return {str(choice): choice for choice in field.choices}.get(value, value)
    return value


def _sentences(fault: ErrorDetails, fields: Mapping[str, FlagField], origins: Mapping[str, str]) -> list[str]:
    name = next((str(part) for part in reversed(fault["loc"]) if part in fields), "")
    where = f"{origins[name]}: {name}" if name in origins else f"--{name}"
    if fault["type"] == "missing":
        return [f"--{name} is required: {fields[name].help.rstrip('.')}."]
    if fault["type"] == "literal_error":
        return [f"{where}: {not_a_choice(fault['input'], fields[name].choices or [])}"]
    if fault["type"] in ("value_error", "assertion_error"):
        text = str(fault.get("ctx", {}).get("error", fault["msg"]))
        return [f"{where}: {line}" if name else line for line in text.splitlines()]
    kinds = {"int_parsing": "a whole number", "int_from_float": "a whole number", "int_type": "a whole number",
             "float_parsing": "a number", "float_type": "a number", "bool_type": "true or false",
             "bool_parsing": "true or false", "string_type": "a text in quotes", "path_type": "a path in quotes"}
    if fault["type"] in kinds:
        return [f"{where}: {fault['input']!r} is not {kinds[fault['type']]}."]
    message = fault["msg"].removeprefix("Input ").rstrip(".")
    return [f"{where}: {fault['input']!r} {message}."]
