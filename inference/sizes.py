"""Size and length of a clip: the rules that turn a request, a picture and a sound into whole numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.media.picture import wan_i2v_size
from common.timebase import frames_in

OMNIAVATAR_SIZES: dict[int, tuple[tuple[int, int], ...]] = {
    720: ((400, 720), (720, 720), (720, 400)),
    1280: ((720, 720), (528, 960), (960, 528), (720, 1280), (1280, 720)),
}
"""(height, width) of OmniAvatar's `image_sizes_720` (its "480p") and `image_sizes_1280` ("720p"), by `max_hw`."""


@dataclass(frozen=True)
class Length:
    """Video frames of a clip."""

    frames: int
    """What the model makes at once, 4n+1: the whole clip, or the first chunk of a long one."""
    shown: int
    """What is written of all chunks together: the frames that the sound covers, or all."""


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


def clip_length(asked: int | None, default: int, *, sound_s: float | None, fps: float, shift: int = 0) -> int:
    """Frames that are written: the asked number, else what the sound covers, else the default.

    `sound_s` includes the silence in front; `shift`: frames by which the sound begins after the first one.
    """
    if asked is not None:
        return asked
    return default if sound_s is None else max(frames_in(sound_s, fps), 1) + shift


def nearest_size(picture: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The size (height, width) whose ratio of the sides is nearest to the picture's; of equals the nearer longer side.

    Source: OmniAvatar `scripts/inference.py`, which chooses among `OMNIAVATAR_SIZES`.
    """
    height, width = picture
    return min(sizes, key=lambda size: (abs(size[0] / size[1] - height / width), abs(max(size) - max(picture))))
