"""Turns the paths of a dataset entry into folders and files that exist."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
import os
from pathlib import Path
import unicodedata

from common.errors import nearest
from common.media.image import IMAGE_SUFFIXES
from common.media.video import VIDEO_SUFFIXES
from common.speakers import audio_feature
from dataset.index import INDEX_NAME, CacheIndex
from dataset.roles import MASK_ROLES, speaker_mask_role
from dataset.schema import SOURCE_KEYS, Entry


@dataclass(frozen=True)
class Places:
    """Where an entry's sources, side files and cache are."""

    source: Path
    """Folder of the sources, or the file that lists them."""
    cache: Path
    bases: tuple[Path, ...]
    """Folders that the relative paths of a list are looked for in, in this order."""
    index: CacheIndex
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Folder of the side files of each role that the entry names a folder for."""
    notes: tuple[str, ...] = ()


def locate(entry: Entry, toml: Path) -> tuple[Places | None, list[tuple[str, str]]]:
    """Places of `entry`, or None, and problems as (key, sentence).

    A relative path means the working directory, as in musubi-tuner; where the source is not there, all of the entry's
    relative paths are tried from the TOML's folder. A source folder may be absent when the cache remembers it.
    """
    key, written = _source_of(entry)
    folder = toml.resolve().parent
    bases = [Path.cwd()] if written.is_absolute() or folder == Path.cwd() else [Path.cwd(), folder]
    base = next((base for base in bases if _is_there(base / written, entry)), None)
    if base is None:
        base = next((base for base in bases if entry.cache_directory and entry.directory
                     and (base / entry.cache_directory / INDEX_NAME).is_file()), None)
    if base is None:
        looked = " and ".join(str(base / written) for base in bases)
        what = "folder" if entry.directory else "file"
        return None, [(key, f"no such {what}: {looked}{_nearest_name(bases, written)}")]
    notes = []
    if base != bases[0]:
        notes.append(f"relative paths are taken from the dataset file's folder, {base}.")
    cache = base / (entry.cache_directory or written)
    problems: list[tuple[str, str]] = []
    index = CacheIndex.load(cache)
    sides = side_directories(entry)
    for role, (key, path) in sides.items():
        remembered = any(name.startswith(f"{role}:") for name in index.sources)
        if not (base / path).is_dir() and not remembered:
            problems.append((key, f"no such folder: {base / path}{_nearest_name([base], path)}"))
    if cache.exists() and not cache.is_dir():
        problems.append(("cache_directory", f"{cache} is a file."))
    list_bases = tuple(dict.fromkeys([*bases, (base / written).resolve().parent]))
    folders = {role: base / path for role, (_, path) in sides.items()}
    return Places(base / written, cache, list_bases, index, folders, tuple(notes)), problems


def side_directories(entry: Entry) -> dict[str, tuple[str, Path]]:
    """Key of the TOML and folder, as written, of each role that the entry names a folder for."""
    found = {role: (f"{role}_directory", path) for role in ("control", "audio", *MASK_ROLES)
             if (path := getattr(entry, f"{role}_directory", None)) is not None}
    for key, name in (("audio_directories", audio_feature), ("speaker_mask_directories", speaker_mask_role)):
        for speaker, path in enumerate(getattr(entry, key, None) or (), start=1):
            found[name(speaker)] = (key, path)
    return found


def relative_key(written: str, base: Path) -> str:
    """Name of a file that stays the same when the dataset is copied elsewhere: the relative path, slashes, NFC.

    `base` is the folder of the directory or list that names the file; an absolute path below it becomes relative.
    """
    path = Path(written)
    if path.is_absolute() and path.resolve().is_relative_to(base.resolve()):
        path = path.resolve().relative_to(base.resolve())
    return unicodedata.normalize("NFC", Path(os.path.normpath(path)).as_posix())


def source_stem(name: str) -> str:
    """Name without the ending of a picture or video; that of a folder is left whole. The file need not be there."""
    stem, dot, ending = name.rpartition(".")
    return stem if stem and dot + ending.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES else name


def find_file(written: str, bases: Iterable[Path]) -> Path | None:
    """First existing file or folder for a path of a list, or None."""
    for base in bases:
        if (base / written).exists():
            return base / written
    return None


def _source_of(entry: Entry) -> tuple[str, Path]:
    return next((key, getattr(entry, key)) for key in SOURCE_KEYS if getattr(entry, key, None) is not None)


def _is_there(path: Path, entry: Entry) -> bool:
    return path.is_dir() if entry.directory else path.is_file()


def _nearest_name(bases: Iterable[Path], written: Path) -> str:
    for base in bases:
        parent = (base / written).parent
        if parent.is_dir() and (close := nearest(written.name, os.listdir(parent))):
            return close
    return ""
