"""Which source pictures make the frames at another rate: by time stamps, or by musubi-tuner's `source_fps` rule."""

from fractions import Fraction
import math

import numpy as np

from common.timebase import as_fraction

TOLERANCE_S = 1e-3
"""Largest rounding of a container's time stamps (Matroska and FLV count milliseconds, QuickTime 1/600 s)."""


def pick_by_time(times_s: np.ndarray, duration_s: float, *, fps: float | Fraction, tick_s: float) -> np.ndarray:
    """Index of the source picture that each frame at `fps` shows: the one on the screen in the middle of its time.

    `times_s`: seconds of the source pictures since the first, ascending; `duration_s` until the end of the last;
    `tick_s`: step of the container's time stamps, half of which (at most a millisecond) is forgiven. Frame k is the
    last picture that begins before (k+½)/fps, and there is a frame k where the video still runs then.

    The middle, because then no event moves by more than half a frame against the sound, and time stamps that tremble
    neither drop nor repeat a picture; the start of the frame's time would show everything half a frame late on average.
    ffmpeg's ``fps`` filter, with which the talking-head data sets were made, rounds the same way.
    """
    tolerance_s = min(tick_s / 2, TOLERANCE_S) + 1e-9
    rate = as_fraction(fps)
    count = max(1, math.ceil((duration_s - tolerance_s) * float(rate) - 0.5))
    middles_s = (np.arange(count) + 0.5) * float(1 / rate)
    return np.maximum(np.searchsorted(times_s, middles_s - tolerance_s, side="left") - 1, 0)


def pick_by_source_fps(frames: int, *, fps: float, source_fps: float) -> np.ndarray:
    """Indices of the pictures that musubi-tuner keeps when the user states `source_fps`; time stamps are not looked at.

    A running value advances by fps/source_fps each picture, and a picture is kept when its whole part changes. Pictures
    are dropped, never repeated: a source slower than `fps` keeps all of them and then runs too fast.
    Source: musubi-tuner `load_video`; the value is accumulated in float there, and so here.
    """
    kept: list[int] = []
    step, running, previous = float(fps) / float(source_fps), 0.0, -1
    for index in range(frames):
        whole = int(running)
        running += step
        if whole != previous:
            kept.append(index)
            previous = whole
    return np.array(kept, np.int64)
