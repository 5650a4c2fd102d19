"""The rows of a dataset entry: each source with its caption and side files, before any media file is opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import nearest
from dataset.places import Places, find_file, relative_key
from dataset.roles import role_name


@dataclass(frozen=True)
class FileRef:
    """A file of the dataset and the name that the cache knows it by."""

    path: Path
    key: str
    """Relative name; side files carry their role in front, as in ``audio:clip.wav``."""
    is_present: bool = True
    """False where only the cache remembers the file."""


@dataclass(frozen=True)
class Row:
    """One source of a dataset entry."""

    where: str
    """File, or list file and line, for messages."""
    media: FileRef
    caption: str
    sides: Mapping[str, tuple[FileRef, ...]] = field(default_factory=dict)
    boxes: tuple[str, ...] = ()
    """Where each speaker is, if the row itself says so."""

    @property
    def label(self) -> str:
        """Where the row stands, and its file where a list's line does not tell it."""
        name = self.media.path.name
        return self.where if self.where.endswith(name) else f"{self.where} ({name})"


@dataclass
class RowList:
    """Rows found, problems that stop the run, and lines worth telling."""

    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def remembered_rows(places: Places) -> list[Row]:
    """The rows in the cache's index, with every file marked as absent unless it is there."""
    rows = []
    for data in places.index.rows:
        media = _remembered(places.source, str(data["key"]))
        sides = {role: tuple(_remembered(places.folders.get(role, places.source), name) for name in names)
                 for role, names in dict(data.get("sides", {})).items()}
        rows.append(Row(str(media.path), media, str(data["caption"]), sides))
    return rows


def row_data(row: Row) -> dict[str, Any]:
    """The row as the index keeps it."""
    return {"key": row.media.key, "caption": row.caption,
            "sides": {role: [file.key for file in files] for role, files in row.sides.items()}}


def file_of_list(written: Any, role: str, places: Places, problems: list[str], where: str) -> FileRef | None:
    """The file that a list names, None with a problem when it is neither there nor remembered by the cache.

    Looked for in the working directory, beside the TOML and beside the list, in this order.
    """
    what = "path" if role == "media" else f"{role_name(role)} path"
    if not isinstance(written, str) or not written.strip():
        problems.append(f"{where}: the {what} must be text, found {written!r}.")
        return None
    if any(ord(letter) < 32 for letter in written):
        problems.append(f"{where}: the {what} {written!r} holds a control character; write \\\\ or / in JSON.")
        return None
    key = relative_key(written, places.source.parent)
    key = key if role == "media" else f"{role}:{key}"
    path = find_file(written, places.bases)
    if path is None and key not in places.index.sources:
        problems.append(f"{where}: {what} '{written}': no such file{_nearest_file(written, places)}. Looked in "
                        f"{', '.join(str(base) for base in places.bases)}.")
        return None
    return FileRef(path or places.bases[0] / written, key, path is not None)


def _remembered(folder: Path, key: str) -> FileRef:
    path = folder / key.split(":", 1)[-1]
    return FileRef(path, key, path.exists())


def _nearest_file(written: str, places: Places) -> str:
    for base in places.bases:
        folder = (base / written).parent
        if folder.is_dir() and (close := nearest(Path(written).name, [file.name for file in folder.iterdir()])):
            return close
    return ""
