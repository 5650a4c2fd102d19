"""Rows of a JSONL file or of an OmniAvatar manifest."""

import difflib
import json
from pathlib import Path
import re
from typing import Any

from dataset.places import Places
from dataset.rows import FileRef, Row, RowList, file_of_list
from dataset.schema import Entry

SIDE_KEYS = {"control_path": "control", "control_path_0": "control", "audio_path": "audio",
             "reference_path": "reference", "mask_path": "mask", "camera_path": "camera",
             "speaker_audio_paths": "speaker"}
"""JSONL keys of side files and the role of each."""

MANIFEST_FIELDS = ("prompt", "image", "audio", "video")

_SEVERAL_PICTURES = re.compile(r"(image_path|control_path)_\d+")


def read_jsonl(entry: Entry, places: Places) -> RowList:
    """Rows of a file with one JSON object a line; blank lines are skipped, keys without a meaning here told once."""
    found = RowList()
    media_key = f"{entry.kind}_path"
    strangers: dict[str, None] = {}
    for where, line in _lines(places.source, found):
        try:
            data = json.loads(line)
        except ValueError as error:
            found.problems.append(f"{where}: not valid JSON: {error}.")
            continue
        if not isinstance(data, dict):
            found.problems.append(f"{where}: expected an object with \"{media_key}\" and \"caption\".")
            continue
        strangers |= dict.fromkeys(_check_keys(data, entry.kind, where, found))
        row = _row(data, media_key, places, where, found)
        if row is not None:
            found.rows.append(row)
    if strangers:
        found.notes.append(f"{places.source.name}: keys without a meaning here are ignored: {', '.join(strangers)}.")
    _refuse_empty(places.source, found)
    return found


def read_manifest(places: Places) -> RowList:
    """Rows of ``prompt@@image@@audio@@video`` lines; image and audio may be empty, blank lines are skipped."""
    found = RowList()
    for where, line in _lines(places.source, found):
        fields = [field.strip() for field in line.split("@@")]
        if len(fields) != len(MANIFEST_FIELDS):
            found.problems.append(f"{where}: {len(fields)} fields; expected 4: {'@@'.join(MANIFEST_FIELDS)} (image and "
                                  "audio may be empty).")
            continue
        prompt, image, audio, video = fields
        media = file_of_list(video, "media", places, found.problems, where)
        sides = {role: file_of_list(path, role, places, found.problems, where)
                 for role, path in (("reference", image), ("audio", audio)) if path}
        if media is not None and all(sides.values()):
            found.rows.append(Row(where, media, prompt, {role: (file,) for role, file in sides.items() if file}))
    _refuse_empty(places.source, found)
    return found


def _lines(path: Path, found: RowList) -> list[tuple[str, str]]:
    """(file:line, text) of the lines that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        found.problems.append(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Save it as UTF-8.")
        return []
    # Only \n ends a line: splitlines() would also break at letters that may stand in a caption.
    return [(f"{path}:{number}", line.strip()) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _check_keys(data: dict[str, Any], kind: str, where: str, found: RowList) -> list[str]:
    """Tell keys that are wrong; return those that mean nothing here."""
    known = {f"{kind}_path", "caption", *SIDE_KEYS}
    strangers = []
    for key in data:
        if key in known:
            if kind == "image" and key in ("audio_path", "speaker_audio_paths"):
                found.problems.append(f"{where}: {key}: a picture has no sound. Remove the key, or list videos.")
        elif _SEVERAL_PICTURES.fullmatch(key):
            found.problems.append(f"{where}: {key}: Wan takes one picture of each kind. Remove the key.")
        elif key in ("image_path", "video_path"):
            found.problems.append(f"{where}: {key}: this entry lists {kind}s ({kind}_path).")
        elif close := difflib.get_close_matches(key, known, n=1, cutoff=0.75):
            found.problems.append(f"{where}: unknown key '{key}' (nearest: '{close[0]}').")
        else:
            strangers.append(key)
    return strangers


def _row(data: dict[str, Any], media_key: str, places: Places, where: str, found: RowList) -> Row | None:
    before = len(found.problems)
    for key in (media_key, "caption"):
        if key not in data:
            found.problems.append(f"{where}: '{key}' is missing.")
    if "caption" in data and not isinstance(data["caption"], str):
        found.problems.append(f"{where}: the caption must be text, found {data['caption']!r}.")
    media = file_of_list(data[media_key], "media", places, found.problems, where) if media_key in data else None
    sides: dict[str, tuple[FileRef, ...]] = {}
    for key, role in SIDE_KEYS.items():
        if data.get(key) is None:
            continue
        if role == "speaker" and not isinstance(data[key], list):
            found.problems.append(f"{where}: speaker_audio_paths must be a list of paths, found {data[key]!r}.")
            continue
        written = data[key] if role == "speaker" else [data[key]]
        files = [file_of_list(path, role, places, found.problems, where) for path in written]
        sides[role] = tuple(file for file in files if file is not None)
    if len(found.problems) > before or media is None:
        return None
    return Row(where, media, data["caption"].strip(), sides)


def _refuse_empty(path: Path, found: RowList) -> None:
    if not found.rows and not found.problems:
        found.problems.append(f"{path} lists nothing.")
