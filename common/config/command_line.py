"""Command-line words to raw values, and the text of `--help`."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
import os
import re
from typing import Any, get_args, get_origin

from common.config.section import FlagField
from common.errors import nearest


@dataclass
class Words:
    """What stands on a command line, before any value is checked."""

    values: dict[str, Any] = field(default_factory=dict)
    """Flag name → text, list of texts, or bool for a switch."""
    foreign: list[str] = field(default_factory=list)
    """Names of foreign flags that were given."""
    problems: list[str] = field(default_factory=list)
    wants_help: bool = False


def read_words(argv: Sequence[str], fields: Mapping[str, FlagField], foreign: Iterable[str]) -> Words:
    """Sort `argv` into flags and their values. `fields` maps every accepted spelling to its flag.

    ``--name value``, ``--name=value`` and dashes inside a name (``--network-dim``) are accepted. The value of a flag
    that takes one may begin with a dash; otherwise a word that begins with ``--`` opens the next flag.
    """
    words = Words()
    known_foreign = set(foreign)
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            words.wants_help = True
            continue
        if not word.startswith("--"):
            words.problems.append(f"unexpected '{word}': no flag stands before it. A flag starts with two dashes.")
            continue
        spelling, equals, attached = word[2:].partition("=")
        spelling = spelling.replace("-", "_")
        given = [attached] if equals else []
        while rest and not _opens_flag(rest[0]):
            given.append(rest.pop(0))
        _take(words, spelling, given, fields, known_foreign)
    return words


def _opens_flag(word: str) -> bool:
    return word in ("-h", "--help") or bool(re.match(r"--[A-Za-z]", word))


def _take(words: Words, spelling: str, given: list[str], fields: Mapping[str, FlagField], foreign: set[str]) -> None:
    negated = fields.get(spelling.removeprefix("no_")) if spelling.startswith("no_") else None
    flag = fields.get(spelling) or (negated if negated and (negated.is_switch or negated.switch) else None)
    if flag is None:
        if spelling in foreign:
            words.foreign.append(spelling)
        else:
            words.problems.append(f"unknown flag --{spelling}{_nearest_flag(spelling, fields, foreign)}")
        return
    if flag.switch is not None and not given:
        words.values[flag.name] = flag.switch[spelling in fields]
    elif (fault := _wrong_count(spelling, given, flag)) is not None:
        words.problems.append(fault)
    elif flag.is_switch:
        words.values[flag.name] = spelling in fields
    else:
        words.values[flag.name] = given[0] if flag.count == 1 else given


def _nearest_flag(spelling: str, fields: Mapping[str, FlagField], foreign: set[str]) -> str:
    return nearest(spelling, [*fields, *foreign]).replace("nearest: '", "nearest: '--")


def _wrong_count(spelling: str, given: list[str], flag: FlagField) -> str | None:
    if flag.count == len(given) or (flag.count is None and given):
        return None
    if flag.count == 0:
        return f"--{spelling} is a switch and takes no value, got {' '.join(given)!r}."
    wanted = {None: "at least one value", 1: "one value"}.get(flag.count, f"{flag.count} values")
    hint = " Put quotes around a value that holds spaces." if len(given) > 1 else ""
    got = " ".join(repr(value) for value in given) or "none"
    return f"--{spelling} takes {wanted}, got {got}.{hint}"


def help_text(fields: Iterable[FlagField], *, prog: str, description: str, epilog: str) -> str:
    """The text of `--help`: flags under the headings of their groups, each with its default."""
    width = min(120, int(os.environ.get("COLUMNS", "0") or 0) or _terminal_width())
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=epilog, usage=f"{prog} [flags]",
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, 2, 10, width))
    parser.add_argument("--config_file", metavar="TOML", help="settings file with flag names as keys (TOML, or the "
                        "JSON beside a generated video); the command line wins over it. The settings that a run "
                        "prints at its start are such a file")
    for group, members in groupby(fields, key=lambda flag: flag.group):
        section = parser.add_argument_group(group)
        for flag in members:
            _add_to_help(section, flag)
    return parser.format_help()


def _add_to_help(section: Any, flag: FlagField) -> None:
    text = flag.help.rstrip(".")
    default = None if flag.required else flag.info.get_default(call_default_factory=True)
    if flag.required:
        text += " (required)"
    elif not flag.is_switch and default is not None and default not in ([], (), ""):
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        text += f" (default: {shown})"
    if flag.alias:
        text += f"; also --{flag.alias}"
    text = text.replace("%", "%%")
    if flag.is_switch:
        section.add_argument(f"--no_{flag.name}" if default else f"--{flag.name}", action="store_true", help=text)
        return
    metavar = "{" + ",".join(map(str, flag.choices)) + "}" if flag.choices else _metavar(flag)
    count: Any = "+" if flag.count is None else flag.count if flag.count != 1 else "?" if flag.switch else None
    section.add_argument(f"--{flag.name}", nargs=count, metavar=metavar, help=text)


def _metavar(flag: FlagField) -> str:
    inner = [kind for kind in get_args(flag.annotation) if kind is not Ellipsis]
    kind = inner[0] if get_origin(flag.annotation) in (list, tuple) and inner else flag.annotation
    names = {int: "N", float: "X"}
    if kind in names:
        return names[kind]
    return "PATH" if getattr(kind, "__name__", "") == "Path" else "VALUE"


def _terminal_width() -> int:
    import shutil

    return shutil.get_terminal_size((100, 24)).columns - 2
