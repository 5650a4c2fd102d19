"""Shape of a video as it is to be shown: turning, pixel aspect and oddities, from its first picture."""

from dataclasses import dataclass
from fractions import Fraction
import os
from typing import Any

import numpy as np

from common.errors import MediaError
from common.media.container import need_pictures, open_media

# (a, b, c, d) of FFmpeg's display matrix, x' = a·x + c·y and y' = b·x + d·y with y downwards, by EXIF orientation.
_MATRICES = {1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
             5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0)}
_TURNS = {2: "mirrored", 3: "turned by 180 degrees", 4: "mirrored top to bottom", 5: "turned and mirrored",
          6: "turned clockwise", 7: "turned and mirrored", 8: "turned counter-clockwise"}
_HDR_TRANSFERS = (16, 18)
_NEARLY_SQUARE = 0.01


@dataclass(frozen=True)
class FirstFrame:
    """`width`, `height` as stored; `orientation` in EXIF's numbers; `pixel_aspect` width over height of one pixel.

    `pts`: its time stamp; packets before it (a file cut out of a longer one between two key frames) show nothing.
    """

    pts: int | None
    width: int
    height: int
    orientation: int
    pixel_aspect: Fraction
    notes: tuple[str, ...]

    @property
    def square_size(self) -> tuple[int, int]:
        """(width, height) as stored, with square pixels: the shorter direction is stretched."""
        aspect = self.pixel_aspect
        if aspect >= 1:
            return round(self.width * aspect), self.height
        return self.width, round(self.height / aspect)

    @property
    def shown_size(self) -> tuple[int, int]:
        """(width, height) as shown."""
        width, height = self.square_size
        return (height, width) if self.orientation >= 5 else (width, height)


def first_frame(path: str | os.PathLike[str]) -> FirstFrame:
    """Decode the first shown picture of a video file and tell its shape. MediaError where none can be decoded."""
    with open_media(path) as container:
        stream = need_pictures(path, container)
        frame = next((frame for frame in container.decode(stream) if not frame.is_corrupt), None)
        if frame is None:
            raise MediaError(f"{path}: no picture in it can be decoded. Re-encode the file or take it out.")
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        if aspect <= 0 or abs(aspect - 1) < _NEARLY_SQUARE:
            aspect = Fraction(1)
        orientation = display_orientation(frame)
        notes = _notes(frame, stream.codec_context.color_trc, orientation, aspect)
        return FirstFrame(frame.pts, frame.width, frame.height, orientation, aspect, notes)


def display_orientation(frame: Any) -> int:
    """EXIF number of the turn or mirroring that a frame's display matrix asks for (1 where it has none)."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return 1
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
    return max(_MATRICES, key=lambda number: float(np.dot(_MATRICES[number], (a, b, c, d))))


def _notes(frame: Any, transfer: int, orientation: int, aspect: Fraction) -> tuple[str, ...]:
    notes = []
    if orientation != 1:
        notes.append(f"{_TURNS[orientation]} by its display matrix")
    if aspect != 1:
        notes.append(f"pixels of {aspect.numerator}:{aspect.denominator} made square")
    if frame.interlaced_frame:
        notes.append("interlaced, read as it is")
    if int(transfer) in _HDR_TRANSFERS:
        notes.append("HDR, read without tone mapping")
    return tuple(notes)
