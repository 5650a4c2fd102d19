"""Turns the paths of a dataset entry into folders and files that exist."""

from collections.abc import Iterable
from dataclasses import dataclass
import os
from pathlib import Path
import unicodedata

from common.errors import nearest
from common.media.image import IMAGE_SUFFIXES
from common.media.video import VIDEO_SUFFIXES
from dataset.index import INDEX_NAME, CacheIndex
from dataset.schema import SOURCE_KEYS, Entry, VideoEntry


@dataclass(frozen=True)
class Places:
    """Where an entry's sources, side files and cache are."""

    source: Path
    """Folder of the sources, or the file that lists them."""
    cache: Path
    bases: tuple[Path, ...]
    """Folders that the relative paths of a list are looked for in, in this order."""
    index: CacheIndex
    control: Path | None = None
    audio: Path | None = None
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
    sides: dict[str, Path | None] = {"control": None, "audio": None}
    index = CacheIndex.load(cache)
    for side, path in (("control", entry.control_directory),
                       ("audio", entry.audio_directory if isinstance(entry, VideoEntry) else None)):
        sides[side] = None if path is None else base / path
        remembered = any(name.startswith(f"{side}:") for name in index.sources)
        if path is not None and not (base / path).is_dir() and not remembered:
            problems.append((f"{side}_directory", f"no such folder: {base / path}{_nearest_name([base], path)}"))
    if cache.exists() and not cache.is_dir():
        problems.append(("cache_directory", f"{cache} is a file."))
    list_bases = tuple(dict.fromkeys([*bases, (base / written).resolve().parent]))
    return Places(base / written, cache, list_bases, index, **sides, notes=tuple(notes)), problems


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
