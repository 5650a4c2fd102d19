"""Prompt files: one generation a line with musubi-tuner's line options, OmniAvatar lines, TOML or JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
import json
from pathlib import Path
import re
from typing import Any

from common.config import from_values, read_toml
from common.errors import ConfigError, nearest
from inference.request import GenerationRequest

LINE_OPTIONS = {
    "w": "width", "h": "height", "f": "video_length", "d": "seed", "s": "infer_steps", "g": "guidance_scale",
    "l": "guidance_scale", "fs": "flow_shift", "n": "negative_prompt", "i": "image_path", "ei": "end_image_path",
    "a": "audio", "cn": "control_path",
}
"""Option of a line → field of GenerationRequest (width and height are the two halves of video_size)."""

ALIASES = {
    "frame_count": "video_length", "sample_steps": "infer_steps", "cfg_scale": "guidance_scale",
    "discrete_flow_shift": "flow_shift", "control_video_path": "control_path", "audio_path": "audio",
    "prompt": "prompt",
}
"""Keys of musubi-tuner's TOML and JSON forms whose names differ."""

PER_PROMPT = ("negative_prompt", "image_path", "end_image_path", "control_path", "audio", "video_length", "fps", "seed",
              "infer_steps", "flow_shift", "guidance_scale", "audio_scale", "sample_solver", "trim_tail_frames",
              "width", "height")
"""Settings that may differ from prompt to prompt."""

REFUSED = {"of": "one-frame inference belongs to FramePack models",
           "ci": "control pictures belong to FramePack models; --cn takes a control video",
           "cim": "control masks belong to FramePack models"}

_PATHS = ("image_path", "end_image_path", "control_path", "audio")
_OPTION = re.compile(r"(?:^|(?<=\s))--([A-Za-z]\w*)(?=\s|$|=)=?")
_QUOTES = re.compile(r"""^(["'])(.*)\1$""", re.DOTALL)


@dataclass(frozen=True)
class PromptEntry:
    """One prompt of a file: where it stands, and either its request or what is wrong with it."""

    where: str
    request: GenerationRequest | None
    problem: str = ""


def read_prompts(path: Path, base: GenerationRequest, flag: str = "--from_file") -> list[PromptEntry]:
    """Every prompt of a file as `base` with the prompt's own settings on top; `flag` is what messages call the file.

    A wrong line becomes an entry with a problem and does not stop the others. ConfigError when the file itself cannot
    be read or holds no prompt.
    """
    readers = {".toml": _read_toml, ".json": _read_json}
    try:
        rows = list(readers.get(path.suffix.lower(), _read_lines)(path, flag))
    except FileNotFoundError as error:
        raise ConfigError(f"{flag} {path}: no such file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {path}: not UTF-8 text ({error}). Save it as UTF-8.") from error
    if not rows:
        raise ConfigError(f"{flag} {path}: holds no prompt. Write one prompt a line; lines that begin with # are "
                          "comments.")
    return [_entry(where, values, base, path.parent) for where, values in rows]


def parse_line(line: str) -> dict[str, Any]:
    """Settings of one line. Text before the first option is the prompt, whatever it holds.

    Raises ConfigError for an unknown option, one without a value, and one that is given twice.
    """
    marks = list(_OPTION.finditer(line))
    text = line[:marks[0].start()] if marks else line
    values: dict[str, Any] = _split_omniavatar(text.strip())
    for i, mark in enumerate(marks):
        end = marks[i + 1].start() if i + 1 < len(marks) else len(line)
        name, value = mark[1], _unquote(line[mark.end():end].strip())
        field = _field(name)
        if value == "":
            raise ConfigError(f"option --{name} has no value.")
        if field in values:
            raise ConfigError(f"'{field}' is given twice.")
        values[field] = value
    return values


def _field(name: str) -> str:
    if name in REFUSED:
        raise ConfigError(f"option --{name}: {REFUSED[name]}.")
    known = {**LINE_OPTIONS, **{field: field for field in PER_PROMPT}}
    if name not in known:
        hint = nearest(name, known).replace("nearest: '", "nearest: '--")
        raise ConfigError(f"unknown option --{name}{hint}. Options of a line: --{' --'.join(LINE_OPTIONS)}. A prompt "
                          "that holds two dashes can stand in a .toml or .json file.")
    return known[name]


def _unquote(text: str) -> str:
    match = _QUOTES.match(text)
    return match[2] if match else text


def _split_omniavatar(text: str) -> dict[str, Any]:
    parts = [part.strip() for part in text.split("@@")]
    if len(parts) > 3:
        raise ConfigError(f"{len(parts)} parts between '@@'; a prompt line has prompt@@image@@audio. Four parts are a "
                          "line of a dataset manifest.")
    return {name: part for name, part in zip(("prompt", "image_path", "audio"), parts, strict=False) if part}


def _read_lines(path: Path, flag: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield f"{path.name} line {number}", line.strip()


def _read_toml(path: Path, flag: str) -> Iterator[tuple[str, dict[str, Any]]]:
    table = read_toml(path).data.get("prompt")
    if not isinstance(table, dict) or not isinstance(table.get("subset"), list):
        raise ConfigError(f"{flag} {path}: a TOML prompt file has a table [prompt] with common settings and one "
                          "[[prompt.subset]] for each prompt.")
    common = {key: value for key, value in table.items() if key != "subset"}
    for number, subset in enumerate(table["subset"], start=1):
        yield f"{path.name} [[prompt.subset]] {number}", {**common, **subset}


def _read_json(path: Path, flag: str) -> Iterator[tuple[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{flag} {path}: not valid JSON: {error}.") from error
    if not isinstance(rows, list):
        raise ConfigError(f"{flag} {path}: a JSON prompt file is a list of objects, one a prompt.")
    for number, row in enumerate(rows, start=1):
        yield f"{path.name} entry {number}", row


def _entry(where: str, row: Any, base: GenerationRequest, folder: Path) -> PromptEntry:
    try:
        values = parse_line(row) if isinstance(row, str) else _from_table(row)
        return PromptEntry(where, _request(values, base, folder))
    except ConfigError as error:
        return PromptEntry(where, None, str(error))


def _from_table(row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise ConfigError(f"{row!r} is neither an object with 'prompt' nor a prompt line.")
    known = {**{name: name for name in PER_PROMPT}, **ALIASES}
    values = {}
    for key, value in row.items():
        if key not in known:
            raise ConfigError(f"unknown key '{key}'{nearest(key, known)}.")
        if value is not None:
            values[known[key]] = value
    return values


def _request(values: dict[str, Any], base: GenerationRequest, folder: Path) -> GenerationRequest:
    settings = {name: getattr(base, name) for name in base.model_fields_set if name != "from_file"}
    height, width = base.video_size
    if "width" in values or "height" in values:
        settings["video_size"] = (values.pop("height", height), values.pop("width", width))
    for name in _PATHS:
        if name in values:
            values[name] = _found(Path(str(values[name])).expanduser(), folder)
    settings.update(values)
    if not settings.get("prompt"):
        raise ConfigError("no prompt.")
    return from_values(GenerationRequest, settings)


def _found(path: Path, folder: Path) -> Path:
    """A relative path is meant from the working folder; where nothing stands there, from the prompt file's folder."""
    return path if path.exists() or not (folder / path).exists() else folder / path
