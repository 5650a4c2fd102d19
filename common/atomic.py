"""Writes that are either whole or absent."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import secrets
import time

TEMPORARY_SUFFIX = ".tmp"


def _file_mode(target: Path) -> int:
    if target.exists():
        return target.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _replace(temporary: Path, target: Path) -> None:
    # Windows refuses to replace a file that a reader holds open for a moment.
    for attempt in range(5):
        try:
            os.replace(temporary, target)
            return
        except PermissionError:
            if attempt == 4:
                raise
            time.sleep(0.2 * (attempt + 1))


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`, on failure removed.

    The temporary name keeps the suffix of `path`, so that writers that look at it choose the right format. A link at
    `path` is followed. The folder is made when it is missing.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A file name may hold 255 bytes, and a letter may be four of them.
    stem = target.stem.encode("utf-8", "surrogateescape")[:80].decode("utf-8", "ignore")
    name = f".{stem}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}{target.suffix}"
    temporary = target.parent / name
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, _file_mode(target))
        _replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk before going on, where the system offers that."""
    if hasattr(os, "O_DIRECTORY"):
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
