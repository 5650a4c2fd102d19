"""Rows of a JSONL file or of an OmniAvatar manifest."""

from collections.abc import Callable
import difflib
import json
from pathlib import Path
import re
from typing import Any

from common.errors import ConfigError
from common.speakers import audio_feature, parse_box
from dataset.places import Places
from dataset.roles import speaker_mask_role
from dataset.rows import FileRef, Row, RowList, file_of_list
from dataset.schema import Entry

SIDE_KEYS = {"control_path": "control", "control_path_0": "control", "audio_path": "audio",
             "reference_path": "reference", "face_mask_path": "face_mask", "lip_mask_path": "lip_mask",
             "mask_path": "mask", "camera_path": "camera"}
"""JSONL keys of side files and the role of each."""

SPEAKER_KEYS: dict[str, Callable[[int], str]] = {
    "audio_paths": audio_feature, "speaker_audio_paths": audio_feature, "speaker_mask_paths": speaker_mask_role}
"""JSONL keys of lists with a file for each speaker, and the role of the file of speaker 1, 2, …"""
BOXES_KEY = "speaker_boxes"

_EXCLUSIVE = (("audio_path", "audio_paths", "speaker_audio_paths"), (BOXES_KEY, "speaker_mask_paths"))

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
    known = {f"{kind}_path", "caption", *SIDE_KEYS, *SPEAKER_KEYS, BOXES_KEY}
    strangers = []
    for key in data:
        if key in known:
            if kind == "image" and key in ("audio_path", *SPEAKER_KEYS, BOXES_KEY):
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
        if data.get(key) is not None and (file := file_of_list(data[key], role, places, found.problems, where)):
            sides[role] = (file,)
    sides |= _speaker_files(data, places, where, found)
    boxes = _boxes(data, where, found)
    if len(found.problems) > before or media is None:
        return None
    return Row(where, media, data["caption"].strip(), sides, boxes)


def _speaker_files(data: dict[str, Any], places: Places, where: str, found: RowList) -> dict[str, tuple[FileRef, ...]]:
    """Files of the lists that have one for each speaker, each under its role."""
    for group in _EXCLUSIVE:
        if len(both := [key for key in group if data.get(key) is not None]) > 1:
            found.problems.append(f"{where}: {' and '.join(both)} say the same thing twice. Keep one of them.")
    sides: dict[str, tuple[FileRef, ...]] = {}
    for key, role_of in SPEAKER_KEYS.items():
        written = data.get(key)
        if written is None:
            continue
        if not isinstance(written, list) or not written:
            found.problems.append(f"{where}: {key} must be a list of paths, one for each speaker, found {written!r}.")
            continue
        for speaker, path in enumerate(written, start=1):
            if file := file_of_list(path, role_of(speaker), places, found.problems, where):
                sides[role_of(speaker)] = (file,)
    return sides


def _boxes(data: dict[str, Any], where: str, found: RowList) -> tuple[str, ...]:
    written = data.get(BOXES_KEY)
    if written is None:
        return ()
    if not isinstance(written, list) or not written or not all(isinstance(box, str) for box in written):
        found.problems.append(f"{where}: {BOXES_KEY} must be a list such as [\"0,0,0.5,1\", \"0.5,0,1,1\"], found "
                              f"{written!r}.")
        return ()
    for box in written:
        try:
            parse_box(box, f"{where}: {BOXES_KEY}")
        except ConfigError as error:
            found.problems.append(f"{error}.")
    return tuple(written)


def _refuse_empty(path: Path, found: RowList) -> None:
    if not found.rows and not found.problems:
        found.problems.append(f"{path} lists nothing.")
