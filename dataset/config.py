"""Reads a dataset TOML (or JSON of the same structure) and reports everything that is wrong with it at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
from typing import Any

import pydantic

from common.config import TomlDocument, read_toml
from common.errors import ConfigError, nearest, raise_all
from common.timebase import floor_frame_count
from dataset.places import Places, locate
from dataset.row_reading import read_rows
from dataset.rows import Row
from dataset.schema import FOREIGN_KEYS, SOURCE_KEYS, ClockKeys, Entry, GeneralKeys, ImageEntry, SharedKeys, VideoEntry

_TABLES = ("general", "datasets")


@dataclass(frozen=True)
class Section:
    """One [[datasets]] entry with the places that it names and the rows found there."""

    index: int
    name: str
    entry: Entry
    places: Places
    rows: tuple[Row, ...] = ()

    @property
    def kind(self) -> str:
        """`image` or `video`."""
        return self.entry.kind


@dataclass(frozen=True)
class DatasetConfig:
    """A dataset TOML that holds: every key known, every file that it names there (or remembered by the cache)."""

    path: Path
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()
    """Lines worth telling: lengths that were rounded, keys that do nothing here."""


@dataclass
class _Reading:
    document: TomlDocument
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def where(self, *keys: str | int) -> str:
        """File and line of the longest known part of `keys`."""
        while keys and self.document.line(*keys) is None:
            keys = keys[:-1]
        return self.document.where(*keys)


def load_dataset_config(path: str | os.PathLike[str]) -> DatasetConfig:
    """Read and check a dataset TOML, and find the sources that it names; no media file is opened.

    Relative paths mean, as in musubi-tuner, the working directory; what is not there is looked for beside the TOML.
    Raises ConfigError that lists every problem: file, line, table, key, nearest known name, remedy.
    """
    reading = _Reading(_read_document(Path(path)))
    data = reading.document.data
    for key in data:
        if key not in _TABLES:
            reading.problems.append(f"{reading.where(key)}: unknown table or key '{key}'{nearest(key, _TABLES)}. "
                                    "A dataset TOML has [general] and [[datasets]].")
    general = _general(data.get("general", {}), reading)
    entries = data.get("datasets", [])
    if not isinstance(entries, list) or not entries:
        reading.problems.append(f"{path}: no [[datasets]] entry. Add one with video_directory or image_directory.")
        entries = []
    sections = [section for index, table in enumerate(entries)
                if (section := _section(index, table, general, reading)) is not None]
    _check_unique(sections, reading)
    raise_all(reading.problems, ConfigError, os.fspath(path))
    return DatasetConfig(Path(path), tuple(sections), tuple(dict.fromkeys(reading.notes)))


def _read_document(path: Path) -> TomlDocument:
    if path.suffix.lower() != ".json":
        return read_toml(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}.") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected an object with 'general' and 'datasets'.")
    return TomlDocument(path, data, {})


def _general(table: Any, reading: _Reading) -> dict[str, Any]:
    """Checked values of [general], as written."""
    if not isinstance(table, dict):
        reading.problems.append(f"{reading.where('general')}: [general] must be a table.")
        return {}
    own = _without_foreign(table, ("general",), reading)
    misplaced = [key for key in own if key not in GeneralKeys.model_fields
                 and (key in VideoEntry.model_fields or key in ImageEntry.model_fields)]
    for key in misplaced:
        reading.problems.append(f"{reading.where('general', key)}: [general] {key}: this key belongs into each "
                                "[[datasets]] entry. Move it there.")
        own.pop(key)
    # What is wrong here is told here; the entries are looked at without it.
    _, wrong = _validate(GeneralKeys, own, {}, ("general",), reading)
    return {key: value for key, value in own.items() if key not in wrong}


def _section(index: int, table: Any, general: Mapping[str, Any], reading: _Reading) -> Section | None:
    where = ("datasets", index)
    if not isinstance(table, dict):
        reading.problems.append(f"{reading.where(*where)}: datasets {index + 1} must be a table.")
        return None
    table = _without_foreign(table, where, reading)
    model = _model_of(table, where, reading)
    if model is None:
        return None
    inherited = {key: value for key, value in general.items() if key in model.model_fields and key not in table}
    entry, _ = _validate(model, table, inherited, where, reading)
    if entry is None:
        return None
    _check_entry(entry, where, reading)
    places, problems = locate(entry, reading.document.path)
    reading.problems += [f"{reading.where(*where, key)}: {_title(where)} {key}: {text}" for key, text in problems]
    name = entry.name or _default_name(entry)
    if places is None or problems:
        return None
    rows = read_rows(entry, places)
    reading.problems += [f"{_title(where)} '{name}': {problem}" for problem in rows.problems]
    reading.notes += [f"'{name}': {note}" for note in (*places.notes, *rows.notes)]
    return Section(index, name, entry, places, tuple(rows.rows))


def _without_foreign(table: Mapping[str, Any], where: tuple[str | int, ...], reading: _Reading) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in table.items():
        if key not in FOREIGN_KEYS:
            kept[key] = value
            continue
        harmless, reason = FOREIGN_KEYS[key]
        if harmless or value in (False, None):
            reading.notes.append(f"{_title(where)} {key} is ignored: it {reason}.")
        else:
            reading.problems.append(f"{reading.where(*where, key)}: {_title(where)} {key}: {reason}. Remove the key.")
    return kept


def _model_of(table: Mapping[str, Any], where: tuple[str | int, ...], reading: _Reading
              ) -> type[ImageEntry] | type[VideoEntry] | None:
    given = [key for key in table if key in SOURCE_KEYS]
    if len(given) == 1:
        return SOURCE_KEYS[given[0]]
    keys = ", ".join(SOURCE_KEYS)
    if given:
        reading.problems.append(f"{reading.where(*where, given[1])}: {_title(where)} has {' and '.join(given)}; an "
                                "entry has one source. Make an entry of each.")
    else:
        close = [f"'{key}'{nearest(key, SOURCE_KEYS)}" for key in table if nearest(key, SOURCE_KEYS)]
        hint = f" Was {', '.join(close)} meant?" if close else ""
        reading.problems.append(f"{reading.where(*where)}: {_title(where)} names no source; give one of {keys}.{hint}")
    return None


def _validate(model: type[SharedKeys], own: Mapping[str, Any], inherited: Mapping[str, Any],
              where: tuple[str | int, ...], reading: _Reading) -> tuple[Any, set[str]]:
    """The checked section (None when something is wrong) and the keys that are wrong."""
    try:
        return model.model_validate({**inherited, **own}), set()
    except pydantic.ValidationError as error:
        wrong: set[str] = set()
        for fault in error.errors():
            key = str(fault["loc"][0]) if fault["loc"] else ""
            # Several faults in one value are told by the first.
            if key in wrong:
                continue
            wrong.add(key)
            sentence = _sentence(model, key, fault, own)
            reading.problems.append(f"{reading.where(*where, key)}: {_title(where)} {sentence}")
        return None, wrong


def _sentence(model: type[SharedKeys], key: str, fault: Any, own: Mapping[str, Any]) -> str:
    if fault["type"] == "extra_forbidden":
        other = VideoEntry if model is ImageEntry else ImageEntry
        if model is not GeneralKeys and key in (other.model_fields | ClockKeys.model_fields):
            kinds = ("pictures", "videos") if model is ImageEntry else ("videos", "pictures")
            return f"{key}: an entry of {kinds[0]} has no such key (it is for {kinds[1]}). Remove it."
        return f"unknown key '{key}'{nearest(key, model.model_fields)}. Known keys: {', '.join(model.model_fields)}."
    text = fault["msg"].removeprefix("Value error, ")
    expected = fault.get("ctx", {}).get("expected")
    if fault["type"] == "literal_error":
        value = str(own.get(key))
        choices = str(expected).replace("'", "").replace(" or ", ", ").split(", ")
        text = f"'{value}' is none of {expected}{nearest(value, choices)}"
    elif not text.startswith("the path"):
        text = f"{text} (found {own.get(key)!r})"
    return f"{key}: {text}."


def _check_entry(entry: Entry, where: tuple[str | int, ...], reading: _Reading) -> None:
    """Rules that span several keys of one entry, and the lines that tell what was rounded."""
    title = _title(where)
    if entry.cache_directory is None and entry.directory is None:
        reading.problems.append(f"{reading.where(*where)}: {title} lacks cache_directory, which an entry with a list "
                                "file needs. Name a folder for its cache.")
    if entry.bucket_no_upscale and not entry.enable_bucket:
        reading.notes.append(f"{title} bucket_no_upscale does nothing without enable_bucket (as in musubi-tuner).")
    if isinstance(entry, ImageEntry):
        return
    if entry.source_fps is not None and entry.target_fps is not None:
        reading.problems.append(f"{reading.where(*where, 'source_fps')}: {title} has source_fps and target_fps. Keep "
                                "target_fps (by time stamps), or source_fps alone for musubi-tuner's rule.")
    for pair in (("audio_directory", "audio_directories"), ("speaker_boxes", "speaker_mask_directories")):
        if all(getattr(entry, key) is not None for key in pair):
            reading.problems.append(f"{reading.where(*where, pair[0])}: {title} has {pair[0]} and {pair[1]}, which say "
                                    "the same thing twice. Remove one of them.")
    for key in ("audio_directory", "audio_directories"):
        if entry.audio == "none" and getattr(entry, key) is not None:
            reading.problems.append(f"{reading.where(*where, 'audio')}: {title} has audio = \"none\" and {key}. "
                                    "Remove one of them.")
    if entry.frame_extraction == "uniform" and entry.frame_sample == 1:
        reading.notes.append(f"{title} frame_extraction 'uniform' with frame_sample 1 is 'head'.")
    if "target_frames" not in entry.model_fields_set and entry.frame_extraction != "full":
        reading.notes.append(f"{title} has no target_frames: one frame of each video is used (musubi-tuner's default).")
    for frames in entry.target_frames:
        if (valid := floor_frame_count(frames)) != frames:
            reading.notes.append(f"{title} target_frames {frames} becomes {valid}: Wan's VAE needs 4n+1 frames.")


def _check_unique(sections: list[Section], reading: _Reading) -> None:
    for what, value in (("cache_directory", lambda s: s.places.cache), ("name", lambda s: s.entry.name)):
        seen: dict[Any, Section] = {}
        for section in sections:
            key = value(section)
            if key is None:
                continue
            if key in seen:
                where = ("datasets", section.index)
                reading.problems.append(
                    f"{reading.where(*where, what)}: {_title(where)} {what}: {key} is also used by "
                    f"{_title(('datasets', seen[key].index))}; each entry needs its own.")
            seen.setdefault(key, section)


def _default_name(entry: Entry) -> str:
    path = entry.directory or entry.list_file
    assert path is not None
    return path.name if entry.directory else path.stem


def _title(where: tuple[str | int, ...]) -> str:
    return "[general]" if where[0] == "general" else f"[[datasets]] {int(where[1]) + 1}"
