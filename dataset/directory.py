"""Rows of a folder: media files with captions, control, sound and mask files of the same names."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
import re
import unicodedata

from common.errors import nearest
from common.media.image import IMAGE_SUFFIXES
from common.media.sound import SOUND_SUFFIXES
from common.media.video import VIDEO_SUFFIXES
from dataset.places import Places, source_stem
from dataset.roles import is_mask, is_sound, role_name
from dataset.rows import FileRef, Row, RowList, remembered_rows
from dataset.schema import Entry

Listing = Mapping[str, list[Path]]


def read_directory(entry: Entry, places: Places) -> RowList:
    """Rows of the entry's folder, sorted by name; subfolders are not searched.

    A subfolder counts as a video when it holds pictures and a caption file lies beside it. With no media in the folder
    at all the rows come from the cache's index; captions that lie there are read all the same.
    """
    found = RowList()
    media = _media(entry, places, found)
    if not media:
        return _from_index(entry, places, found)
    known = {str(row["key"]): row for row in places.index.rows}
    gone = len(set(known) - {_name(path) for path in media})
    if gone:
        found.notes.append(f"{gone} cached source{'s are' if gone > 1 else ' is'} no longer in {places.source} and not "
                           "used.")
    listings = {role: _listing(folder) for role, folder in places.folders.items()}
    for path in media:
        caption = _caption(entry, path, found)
        sides: dict[str, tuple[FileRef, ...]] = {}
        for role, folder in places.folders.items():
            side = _side(role, path, entry.kind, folder, listings[role], found)
            if side is None and _name(path) in known:
                side = _remembered_side(role, known[_name(path)], folder)
            if side is None:
                found.problems.append(f"{path}: no {role_name(role)} file for it in {folder}"
                                      f"{_near(path, listings[role])}.")
            else:
                sides[role] = (side,)
        if caption is not None:
            found.rows.append(Row(str(path), FileRef(path, _name(path)), caption, sides))
    return found


def _media(entry: Entry, places: Places, found: RowList) -> list[Path]:
    folder = places.source
    if not folder.is_dir():
        return []
    suffixes = IMAGE_SUFFIXES if entry.kind == "image" else VIDEO_SUFFIXES
    media, skipped = [], []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or path == places.cache:
            continue
        if path.is_dir():
            if entry.kind == "video" and _caption_path(entry, path).is_file() and _holds_pictures(path):
                media.append(path)
            elif path not in places.folders.values():
                skipped.append(path.name)
        elif path.suffix.lower() in suffixes:
            media.append(path)
    if skipped:
        found.notes.append(f"subfolders are not searched: {', '.join(skipped[:5])}{' …' if len(skipped) > 5 else ''}.")
    return media


def _from_index(entry: Entry, places: Places, found: RowList) -> RowList:
    found.rows = []
    for row in remembered_rows(places):
        caption = _caption_path(entry, row.media.path)
        text = _read_caption(caption, found) if caption.is_file() else row.caption
        found.rows.append(Row(row.where, row.media, row.caption if text is None else text, row.sides))
    if not found.rows:
        what, suffixes = (("pictures", IMAGE_SUFFIXES) if entry.kind == "image" else ("videos", VIDEO_SUFFIXES))
        found.problems.append(f"{places.source} holds no {what} ({' '.join(sorted(suffixes))}). Put them there, or "
                              "name the folder that holds them.")
    return found


def _caption_path(entry: Entry, media: Path) -> Path:
    return media.with_name(source_stem(media.name) + entry.caption_extension)


def _caption(entry: Entry, media: Path, found: RowList) -> str | None:
    path = _caption_path(entry, media)
    if path.is_file():
        return _read_caption(path, found)
    near = nearest(path.name, [file.name for file in media.parent.iterdir()
                               if file.suffix.lower() not in IMAGE_SUFFIXES | VIDEO_SUFFIXES | {".safetensors"}])
    found.problems.append(f"{media}: no caption: {path.name} is missing{near}. Write it (it may be empty), or set "
                          "caption_extension.")
    return None


def _read_caption(path: Path, found: RowList) -> str | None:
    try:
        return path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        found.problems.append(f"{path}: the caption is not UTF-8 text ({error.reason} at byte {error.start}). Save it "
                              "as UTF-8.")
        return None


def _listing(folder: Path) -> Listing:
    """Files and folders by stem."""
    by_stem: defaultdict[str, list[Path]] = defaultdict(list)
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if not path.name.startswith("."):
                by_stem[_normal(path.name if path.is_dir() else path.stem)].append(path)
    return by_stem


def _side(role: str, media: Path, kind: str, folder: Path, listing: Listing, found: RowList) -> FileRef | None:
    stem = _normal(source_stem(media.name))
    if is_mask(role):
        suffixes = IMAGE_SUFFIXES if kind == "image" else IMAGE_SUFFIXES | VIDEO_SUFFIXES
        matches = [path for path in listing.get(stem, []) if path.suffix.lower() in suffixes
                   or (kind == "video" and path.is_dir())]
    elif is_sound(role):
        matches = [path for path in listing.get(stem, []) if path.suffix.lower() in SOUND_SUFFIXES | VIDEO_SUFFIXES]
    elif kind == "image":
        matches = [path for path in listing.get(stem, []) if path.suffix.lower() in IMAGE_SUFFIXES]
        numbered = re.compile(rf"{re.escape(stem)}_\d+")
        matches += [path for name, paths in listing.items() if numbered.fullmatch(name) for path in paths
                    if path.suffix.lower() in IMAGE_SUFFIXES]
    else:
        matches = [path for path in listing.get(stem, []) if path.suffix.lower() in VIDEO_SUFFIXES or path.is_dir()]
        # The same name, then a folder, then another ending: musubi-tuner's order.
        matches = sorted(matches, key=lambda path: (path.name != media.name, not path.is_dir()))[:1]
    if len(matches) > 1:
        names = ", ".join(path.name for path in matches)
        found.problems.append(f"{media}: several {role_name(role)} files in {folder} fit ({names}). Keep one"
                              f"{'' if is_mask(role) else '; Wan takes one'}.")
    return FileRef(matches[0], f"{role}:{_name(matches[0])}") if matches else None


def _remembered_side(role: str, row: Mapping[str, object], folder: Path) -> FileRef | None:
    """The side file that the cache knows, where its whole folder is absent."""
    keys = dict(row.get("sides", {})).get(role)  # type: ignore[call-overload]
    if not keys or folder.is_dir():
        return None
    return FileRef(folder / str(keys[0]).split(":", 1)[1], str(keys[0]), is_present=False)


def _holds_pictures(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def _near(media: Path, listing: Listing) -> str:
    return nearest(media.stem, listing)


def _name(path: Path) -> str:
    return _normal(path.name)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text)
