"""Reading one picture file as 8-bit RGB, as a viewer would show it."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import MediaError
from common.media.picture import turn

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".tif", ".tiff", ".gif"})
"""File endings that count as pictures, in lower case."""

_SUFFIXES_OF_FORMAT = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"}, "MPO": {".jpg", ".jpeg", ".mpo"}, "PNG": {".png", ".apng"},
    "WEBP": {".webp"}, "BMP": {".bmp", ".dib"}, "DIB": {".bmp", ".dib"}, "GIF": {".gif"}, "TIFF": {".tif", ".tiff"},
    "AVIF": {".avif", ".avifs"}, "JPEG2000": {".jp2", ".j2k", ".jpx"}, "PPM": {".ppm", ".pgm", ".pbm", ".pnm"},
    "TGA": {".tga"},
}
# PIL would hand other formats to outside programs (EPS to Ghostscript); a data set has no business there.
# MPO (JPEG with a second picture, from phones) is opened as JPEG and only then found to be one.
_FORMATS = tuple(set(_SUFFIXES_OF_FORMAT) - {"MPO"})
_EXIF_ORIENTATION = 0x0112
_TIFF_BITS = 258


def read_image(path: str | os.PathLike[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Read a picture as uint8 RGB ``[H W 3]`` and what had to be done to it, as short notes.

    EXIF orientation is applied, transparency is flattened on black, 16-bit is rounded to 8-bit, grey, palette and CMYK
    become RGB; the content decides what the file is, not its name. Of an animation the first frame is taken.
    Raises MediaError where the file is missing, empty, cut short or no picture.
    """
    path = Path(path)
    _check_file(path)
    from PIL import Image

    try:
        with Image.open(path, formats=_FORMATS) as opened:
            notes = _notes_on_file(path, opened)
            opened.load()
            orientation = opened.getexif().get(_EXIF_ORIENTATION, 1)
            picture, more = _deep(path) if _is_16_bit(path, opened) else _to_rgb(opened)
    except Exception as error:
        raise MediaError(f"{path}: not a picture that can be read ({_reason(error)}). "
                         "Replace the file or take it out.") from error
    if orientation in range(2, 9):
        notes.append(f"turned by its EXIF orientation {orientation}")
        picture = turn(picture, orientation)
    return np.ascontiguousarray(picture), tuple(notes + more)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise MediaError(f"{path}: there is no such picture file. Check the path.")
    if path.stat().st_size == 0:
        raise MediaError(f"{path}: the file is empty (0 bytes). Copy it again or take it out.")


def _reason(error: Exception) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "unknown content" if "cannot identify image file" in text else text


def _notes_on_file(path: Path, opened: Any) -> list[str]:
    notes = []
    if path.suffix.lower() not in _SUFFIXES_OF_FORMAT.get(opened.format, set()):
        notes.append(f"{opened.format} data under the name {path.suffix or 'without ending'}")
    if getattr(opened, "n_frames", 1) > 1 and opened.format in ("GIF", "WEBP", "PNG"):
        notes.append(f"first of {opened.n_frames} frames taken")
    return notes


def _is_16_bit(path: Path, opened: Any) -> bool:
    # PIL keeps 16 bits for grey only and silently cuts colour to the high byte, so the file's header is asked.
    if opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM")):
        return True
    if opened.format == "TIFF":
        return set(opened.tag_v2.get(_TIFF_BITS, ())) == {16}
    with open(path, "rb") as file:
        head = file.read(26)
    return opened.format == "PNG" and len(head) == 26 and head[24] == 16


def _deep(path: Path) -> tuple[np.ndarray, list[str]]:
    """A 16-bit picture through OpenCV, which keeps all bits of every channel."""
    import cv2

    data = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if data is None or data.dtype != np.uint16:
        raise ValueError("16-bit data that cannot be decoded")
    notes = ["16 bits rounded to 8"]
    if data.ndim == 2:
        data = data[:, :, None]
    unit = data.astype(np.float32) / 65535
    channels = unit.shape[2]
    colour = unit[:, :, 2::-1] if channels >= 3 else np.repeat(unit[:, :, :1], 3, axis=2)
    if channels in (2, 4) and unit[:, :, -1].min() < 1:
        colour = colour * unit[:, :, -1:]
        notes.append("transparency flattened on black")
    return np.rint(colour * 255).astype(np.uint8), notes


def _to_rgb(opened: Any) -> tuple[np.ndarray, list[str]]:
    if opened.mode == "F" or opened.mode == "I":
        raise ValueError(f"{opened.mode}-mode data has no range of brightness")
    if opened.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in opened.info:
        rgba = np.asarray(opened.convert("RGBA"))
        if rgba[:, :, 3].min() == 255:
            return rgba[:, :, :3], []
        flattened = rgba[:, :, :3].astype(np.uint16) * rgba[:, :, 3:]
        return ((flattened + 127) // 255).astype(np.uint8), ["transparency flattened on black"]
    return np.asarray(opened.convert("RGB")), []
