"""A folder of pictures as a video: which files, in which order."""

import os
from pathlib import Path
import re

from common.errors import MediaError
from common.media.image import IMAGE_SUFFIXES


def folder_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Picture files of `folder` in natural order (``2.png`` before ``10.png``); MediaError where there is none."""
    files = [entry for entry in Path(folder).iterdir()
             if entry.suffix.lower() in IMAGE_SUFFIXES and entry.is_file() and not entry.name.startswith(".")]
    if not files:
        raise MediaError(f"{folder}: no pictures in this folder ({', '.join(sorted(IMAGE_SUFFIXES))}). "
                         "Give a folder with one picture a frame, or a video file.")
    return sorted(files, key=_natural)


def _natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part], path.name
