"""Several speakers: the names of their sounds, and the boxes that say where each of them is in the picture.

The first speaker's sound is the medium `sound` and the feature `audio`; speaker n's are `voice{n}` and `audio{n}`.
"""

from collections.abc import Sequence
import re

from common.errors import ConfigError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of the picture's width and height."""

SPEAKER_REGIONS = "speaker_regions"
"""The medium and the feature that say where each speaker is heard."""

_NUMBERED = re.compile(r"(?:voice|audio)([2-9]|[1-9]\d+)")


def sound_need(speaker: int) -> str:
    """Name of the medium that is the sound of `speaker` (from 1)."""
    return "sound" if speaker == 1 else f"voice{speaker}"


def audio_feature(speaker: int) -> str:
    """Name of the feature that is what is heard of `speaker` (from 1); of a dataset, the role of the sound's file."""
    return "audio" if speaker == 1 else f"audio{speaker}"


def speaker_of(name: str) -> int | None:
    """The speaker whose medium, feature or file `name` is; None where it is no sound."""
    if name in ("sound", "audio"):
        return 1
    match = _NUMBERED.fullmatch(name)
    return int(match[1]) if match else None


def parse_box(text: str, where: str = "--speaker_boxes") -> Box:
    """``left,top,right,bottom`` as shares of the frame, 0 to 1. ConfigError names `where` the box was written."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{where} {text}: expected left,top,right,bottom as shares of the video's width and "
                          "height, such as 0,0,0.5,1 for the left half") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ConfigError(f"{where} {text}: covers nothing of the video. Left and top are below right and "
                          "bottom, all from 0 to 1")
    return left, top, right, bottom


def side_by_side(count: int) -> list[Box]:
    """Boxes of `count` speakers who stand next to each other: strips of equal width from left to right."""
    return [(i / count, 0, (i + 1) / count, 1) for i in range(count)]


def box_texts(boxes: Sequence[Box]) -> str:
    """Boxes as one text, for the header of a cache entry."""
    return " ".join(",".join(f"{side:.17g}" for side in box) for box in boxes)
