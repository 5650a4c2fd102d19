"""Settings files: TOML, with the line of each key for messages, and JSON."""

from dataclasses import dataclass, field
import os
from pathlib import Path
import re
import tomllib
from typing import Any

from common.errors import ConfigError

_HEADER = re.compile(r"^\s*(\[\[?)\s*([^\[\]]+?)\s*\]\]?\s*(?:#.*)?$")
_KEY = re.compile(r"""^\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[A-Za-z0-9_-]+|"[^"]*"|'[^']*'""")


@dataclass(frozen=True)
class TomlDocument:
    """A TOML file's data and the lines where its keys stand."""

    path: Path
    data: dict[str, Any]
    lines: dict[tuple[str | int, ...], int] = field(repr=False)

    def line(self, *keys: str | int) -> int | None:
        """Line (from 1) of a key or table, such as ``line("datasets", 0, "caption_extension")``; None if unknown."""
        return self.lines.get(keys)

    def where(self, *keys: str | int) -> str:
        """`` file.toml line 12`` for messages; without the line where it is unknown."""
        line = self.line(*keys)
        return f"{self.path} line {line}" if line else str(self.path)


def read_toml(path: str | os.PathLike[str]) -> TomlDocument:
    """Read a TOML file (UTF-8, with or without byte order mark).

    Raises ConfigError for a missing file, and with the line of a fault.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{file}: no such file.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text ({error}). Save it as UTF-8.") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = " A Windows path needs single quotes ('C:\\data') or doubled backslashes." if "\\" in text else ""
        raise ConfigError(f"{file}: not valid TOML: {error}.{hint}") from error
    return TomlDocument(file, data, _find_lines(text))


def read_json(path: str | os.PathLike[str]) -> TomlDocument:
    """Settings from a JSON object, or from its key `settings`, as the JSON beside a generated video has it.

    Raises ConfigError for a missing file and for one that holds no object.
    """
    import json

    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{file}: no such file.")
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{file}: not valid JSON: {error}.") from error
    settings = data.get("settings", data) if isinstance(data, dict) else None
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: holds no settings (an object with flag names as keys).")
    return TomlDocument(file, settings, {})


def _find_lines(text: str) -> dict[tuple[str | int, ...], int]:
    lines: dict[tuple[str | int, ...], int] = {}
    counts: dict[tuple[str | int, ...], int] = {}
    table: tuple[str | int, ...] = ()
    closing = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if closing:
            closing = "" if closing in line else closing
            continue
        if header := _HEADER.match(line):
            table = _table(_parts(header[2]), is_array=header[1] == "[[", counts=counts)
            lines[table] = number
        elif key := _KEY.match(line):
            lines[(*table, *_parts(key[1]))] = number
        for quotes in ('"""', "'''"):
            if line.count(quotes) % 2:
                closing = quotes
    return lines


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def _table(names: tuple[str, ...], *, is_array: bool, counts: dict[tuple[str | int, ...], int]
           ) -> tuple[str | int, ...]:
    """Full path of a table header; arrays of tables get the index of their newest element at every level."""
    path: tuple[str | int, ...] = ()
    for position, name in enumerate(names):
        path = (*path, name)
        if is_array and position == len(names) - 1:
            counts[path] = counts.get(path, 0) + 1
        if path in counts:
            path = (*path, counts[path] - 1)
    return path
