"""Size and length of a clip: the rules that turn a request, a picture and a sound into whole numbers."""

from dataclasses import dataclass

from common.media.picture import wan_i2v_size
from common.timebase import (
    ceil_frame_count,
    frames_in,
    omniavatar_frames_for_tokens,
)


@dataclass(frozen=True)
class Length:
    """Video frames of a clip."""

    frames: int
    """What the model makes, 4n+1."""
    shown: int
    """What is written: the frames that the sound covers, or all."""


def size_problem(height: int, width: int, multiple: int) -> str:
    """Sentence for a size that the model cannot make; empty when it can."""
    if height >= multiple and width >= multiple and height % multiple == 0 and width % multiple == 0:
        return ""

    def near(side: int) -> str:
        below = side // multiple * multiple
        return str(side) if side == below and below else f"{below} or {below + multiple}" if below else str(multiple)

    return (f"--video_size {height} {width}: height and width must be multiples of {multiple}. Height {near(height)}, "
            f"width {near(width)} would do.")


def clip_size(height: int, width: int, picture_mode: str, picture: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) of the clip.

    Mode `wan_i2v` takes the area of the asked size and the shape of the `picture` (height, width), as Wan and
    musubi-tuner do; every other mode, and a clip without a picture, takes the size as it is.
    """
    if picture is None or picture_mode != "wan_i2v":
        return width, height
    return wan_i2v_size(*picture, height * width)


def clip_length(asked: int | None, default: int, *, sound_s: float | None, fps: float) -> Length:
    """Frames of the clip: the asked number, else enough for the sound, else the default."""
    if asked is not None:
        return Length(asked, asked)
    if sound_s is None:
        return Length(default, default)
    shown = max(frames_in(sound_s, fps), 1)
    return Length(ceil_frame_count(shown), shown)


def longest_problem(length: Length, fps: float, max_tokens: int, size: tuple[int, int]) -> str:
    """Sentence for an audio-driven clip that is longer than one chunk; empty when it fits."""
    width, height = size
    longest = omniavatar_frames_for_tokens(max_tokens, height, width)
    if length.frames <= longest:
        return ""
    return (f"{length.shown / fps:.2f} s are longer than one clip can be at {width}x{height}: at most "
            f"{longest / fps:.2f} s ({longest} frames at {fps:g} fps). Cut the sound (or give --video_length "
            f"{longest}), use a smaller --video_size, or raise --max_tokens where the memory allows.")
