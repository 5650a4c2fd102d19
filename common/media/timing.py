"""Which source pictures make the frames at another rate: by time stamps, or by musubi-tuner's `source_fps` rule."""

from fractions import Fraction
import math

import numpy as np

from common.timebase import as_fraction

TOLERANCE_S = 1e-3
"""Largest rounding of a container's time stamps (Matroska and FLV count milliseconds, QuickTime 1/600 s)."""


def pick_by_time(times_s: np.ndarray, duration_s: float, *, fps: float | Fraction, tick_s: float) -> np.ndarray:
    """Index of the source picture that is on the screen when each frame at `fps` begins.

    `times_s`: seconds of the source pictures since the first, ascending; `duration_s` until the end of the last;
    `tick_s`: step of the container's time stamps, half of which (at most a millisecond) is forgiven. Frame k is the
    last picture with time ≤ k/fps; there are as many frames as begin before the end.
    """
    tolerance_s = min(tick_s / 2, TOLERANCE_S)
    rate = as_fraction(fps)
    count = max(1, math.ceil((duration_s - max(tolerance_s, 1e-3 / float(rate))) * float(rate)))
    starts_s = np.arange(count) * float(1 / rate)
    return np.searchsorted(times_s, starts_s + tolerance_s + 1e-9, side="right") - 1


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
