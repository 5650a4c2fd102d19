"""What a cache directory remembers about its sources and encoders: one small JSON file."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
import errno
import json
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.errors import CacheError
from common.logs import get_logger

log = get_logger(__name__)

INDEX_NAME = "omnituner-index.json"
_FORMAT = 1


@dataclass(frozen=True)
class CacheIndex:
    """The index of one cache directory; all its values are plain JSON.

    With it an entry can be judged without opening its source again, and when the source is not there at all.
    """

    folder: Path
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By key of the source: size, mtime_ns, content hash, width, height, frames at each rate asked for, sound."""
    rows: tuple[Mapping[str, Any], ...] = ()
    """What the directory held when it was last read: key, caption and side files of each source."""
    features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By feature: the spec, options, fingerprint and files of the encoder that made it last."""
    audio_short: str | None = None
    """Policy that was asked for on a command line; it decides which clips exist, so every script follows it."""

    @classmethod
    def load(cls, folder: Path) -> "CacheIndex":
        """Read the index of `folder`; an empty one when there is none."""
        data = _read(folder / INDEX_NAME)
        return cls(folder, data.get("sources", {}), tuple(data.get("rows", ())), data.get("features", {}),
                   data.get("audio_short"))


def update_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Let `change` edit the index's data in place, alone among all processes, and write it when it differs.

    A folder that cannot be written is left as it is: what is not remembered is found out again.
    """
    path = folder / INDEX_NAME
    with alone_in(folder, "index") as is_writable:
        if not is_writable:
            return
        data = _read(path)
        before = json.dumps(data, sort_keys=True)
        change(data)
        data["format"] = _FORMAT
        if json.dumps(data, sort_keys=True) != before:
            write_text(path, json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True))


@contextmanager
def alone_in(folder: Path, what: str) -> Iterator[bool]:
    """Hold this folder's lock named `what` against all other processes; False (and no lock) where it is read-only."""
    from filelock import FileLock

    lock = FileLock(folder / f".omnituner-{what}.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        log.warning("%s cannot be written (%s); what is found out about its sources is not remembered.", folder,
                    error.strerror)
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ValueError("no table")
    except ValueError as error:
        log.warning("%s is damaged (%s) and is made anew.", path, error)
        return {}
    if data.get("format", _FORMAT) > _FORMAT:
        raise CacheError(f"{path}: written by a newer version (format {data['format']}, this one knows {_FORMAT}). "
                         "Update, or name another cache_directory.")
    return data
