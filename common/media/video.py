"""Reading videos at a frame rate and a size: files, or folders of pictures."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
import os
from pathlib import Path

import numpy as np

from common.errors import ConfigError, MediaError
from common.media.decode import decode_pictures
from common.media.image import read_image
from common.media.picture import PictureMode, fit
from common.media.picture_folder import folder_pictures
from common.media.scan import Scan, scan_video
from common.media.timing import TOLERANCE_S, pick_by_source_fps, pick_by_time
from common.media.video_writer import write_png_frames, write_video
from common.timebase import as_fraction

__all__ = ["VIDEO_SUFFIXES", "VideoInfo", "count_frames", "describe_video", "iter_frames", "probe_video", "read_frames",
           "write_png_frames", "write_video"]

VIDEO_SUFFIXES = frozenset({".mp4", ".webm", ".avi", ".mkv", ".mov", ".flv", ".wmv", ".m4v", ".mpg", ".mpeg"})
"""File endings that count as videos, in lower case (musubi-tuner's list)."""

_USUAL_RATES = tuple(as_fraction(text) for text in ("16", "23.976", "24", "25", "29.97", "30", "50", "59.94", "60"))
_VARIABLE_STEP_S = 2.1e-3
_LATE_S = 0.1


@dataclass(frozen=True)
class VideoInfo:
    """What a video is. `width`, `height`: as shown. `frames`: pictures shown.

    Seconds are on the container's clock, which pictures and sound share: the first picture stands at `start_s`, the
    sound begins at about `sound_start_s` (None without sound). `fps`: average of the time stamps, exact; None for a
    folder of pictures, which has no clock, and for a single picture of unknown rate. `notes`: oddities, in short words.
    """

    width: int
    height: int
    frames: int
    fps: Fraction | None
    start_s: float
    duration_s: float | None
    is_variable: bool
    orientation: int
    sound_start_s: float | None
    codec: str
    notes: tuple[str, ...]

    @property
    def has_sound(self) -> bool:
        """Whether the file has a sound track."""
        return self.sound_start_s is not None


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Read a video's shape and time line without decoding all of it.

    Raises MediaError: missing, empty, damaged, cut short, or without pictures.
    """
    if os.path.isdir(path):
        pictures = folder_pictures(path)
        height, width, _ = read_image(pictures[0])[0].shape
        return VideoInfo(width=width, height=height, frames=len(pictures), fps=None, start_s=0.0, duration_s=None,
                         is_variable=False, orientation=1, sound_start_s=None, codec="pictures",
                         notes=("a folder of pictures",))
    scan = scan_video(path)
    is_variable, fps = _rate(scan)
    notes = list(scan.notes)
    if is_variable:
        steps = np.diff(scan.times_s)
        notes.append(f"variable frame rate (steps {steps.min():.3f} to {steps.max():.3f} s)")
    if scan.timeline.untimed:
        notes.append("no time stamps: pictures counted at the header's rate")
    if scan.sound_start_s is not None and abs(scan.start_s - scan.sound_start_s) > _LATE_S:
        notes.append(f"pictures begin at {scan.start_s:.2f} s, sound at {scan.sound_start_s:.2f} s")
    return VideoInfo(width=scan.width, height=scan.height, frames=len(scan.times_s), fps=fps, start_s=scan.start_s,
                     duration_s=scan.duration_s, is_variable=is_variable, orientation=scan.first.orientation,
                     sound_start_s=scan.sound_start_s, codec=scan.codec, notes=tuple(notes))


def describe_video(path: str | os.PathLike[str]) -> str:
    """One line about a video for messages: ``h264 700x700, 135 frames in 6.14 s (22.09 fps), sound; variable …``."""
    info = probe_video(path)
    rate = f" ({float(info.fps):.5g} fps)" if info.fps else ""
    length = f"{info.frames} frames" + (f" in {info.duration_s:.2f} s" if info.duration_s is not None else "") + rate
    sound = "sound" if info.has_sound else "no sound"
    return "; ".join([f"{info.codec} {info.width}x{info.height}, {length}, {sound}", *info.notes])


def count_frames(path: str | os.PathLike[str], fps: float | Fraction, source_fps: float | None = None) -> int:
    """How many frames `read_frames` can give at `fps`."""
    return len(_picks(path, fps, source_fps))


def read_frames(path: str | os.PathLike[str], *, fps: float | Fraction, start_frame: int = 0, count: int | None = None,
                size: tuple[int, int] | None = None, picture_mode: PictureMode = "cover",
                source_fps: float | None = None) -> np.ndarray:
    """Frames of a video at `fps` as uint8 RGB ``[N H W 3]``, brought to `size` = (width, height) while decoding.

    Frame k belongs to the time from k/fps to (k+1)/fps after the first picture and shows what the time stamps put on
    the screen in the middle of it (`pick_by_time`). `start_frame` and `count` (default: all that follow) are in frames
    at `fps`. With `source_fps` musubi-tuner's own rule applies instead (`pick_by_source_fps`), which ignores the time
    stamps. A folder of pictures gives one frame a picture.
    Memory: the result and one source picture. Raises MediaError (damaged, too short), ConfigError (bad fps).
    """
    frames = iter_frames(path, fps=fps, start_frame=start_frame, count=count, size=size, picture_mode=picture_mode,
                         source_fps=source_fps)
    total = count if count is not None else count_frames(path, fps, source_fps) - start_frame
    result: np.ndarray | None = None
    for index, frame in enumerate(frames):
        if result is None:
            result = np.empty((total, *frame.shape), np.uint8)
        if frame.shape != result.shape[1:]:
            raise MediaError(f"{path}: frame {start_frame + index} is {frame.shape[1]}x{frame.shape[0]}, the ones "
                             f"before it {result.shape[2]}x{result.shape[1]}. Give pictures of one size.")
        result[index] = frame
    return np.empty((0, 0, 0, 3), np.uint8) if result is None else result


def iter_frames(path: str | os.PathLike[str], *, fps: float | Fraction, start_frame: int = 0, count: int | None = None,
                size: tuple[int, int] | None = None, picture_mode: PictureMode = "cover",
                source_fps: float | None = None) -> Iterator[np.ndarray]:
    """Like `read_frames`, one frame ``[H W 3]`` at a time."""
    picks = _picks(path, fps, source_fps)
    end = len(picks) if count is None else start_frame + count
    if start_frame < 0 or end > len(picks):
        raise MediaError(f"{path}: has {len(picks)} frames at {float(fps):.5g} fps; frames {start_frame} to {end - 1} "
                         "were asked for. Ask for a shorter or earlier span.")
    wanted, repeats = np.unique(picks[start_frame:end], return_counts=True)
    for picture, repeat in zip(_pictures(path, wanted.tolist()), repeats.tolist(), strict=True):
        fitted = picture if size is None else fit(picture, size, picture_mode)
        for _ in range(repeat):
            yield fitted


def _pictures(path: str | os.PathLike[str], wanted: list[int]) -> Iterator[np.ndarray]:
    if os.path.isdir(path):
        files = folder_pictures(path)
        return (read_image(files[index])[0] for index in wanted)
    return decode_pictures(Path(path), scan_video(path), wanted)


def _picks(path: str | os.PathLike[str], fps: float | Fraction, source_fps: float | None) -> np.ndarray:
    """Index of the source picture for every frame at `fps`."""
    if fps <= 0 or (source_fps is not None and source_fps <= 0):
        raise ConfigError(f"fps {fps} and source_fps {source_fps} must be above 0.")
    if os.path.isdir(path):
        pictures = len(folder_pictures(path))
        return np.arange(pictures) if source_fps is None else pick_by_source_fps(
            pictures, fps=float(fps), source_fps=source_fps)
    scan = scan_video(path)
    if source_fps is not None:
        return pick_by_source_fps(len(scan.times_s), fps=float(fps), source_fps=source_fps)
    return pick_by_time(scan.times_s, scan.duration_s, fps=fps, tick_s=float(scan.timeline.time_base))


def _rate(scan: Scan) -> tuple[bool, Fraction | None]:
    """(whether the steps vary, average frame rate); a usual exact rate where the time stamps cannot tell it apart."""
    steps = np.diff(scan.timeline.pts)
    if not len(steps):
        return False, scan.rate
    tick = scan.timeline.time_base
    total_s = int(steps.sum()) * tick
    average = len(steps) / total_s
    spread_s = float(steps.max() - steps.min()) * float(tick)
    if spread_s > max(_VARIABLE_STEP_S, 1.01 * min(float(tick), TOLERANCE_S)):
        return True, average
    known = [*_USUAL_RATES, *([scan.rate] if scan.rate else [])]
    nearest = min(known, key=lambda rate: abs(rate - average))
    return False, nearest if abs(nearest / average - 1) <= max(Fraction(1, 10_000), tick / total_s) else average
