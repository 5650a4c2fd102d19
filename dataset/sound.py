"""Whether an item's sound covers its clips, and what is done where it does not."""

from collections.abc import Iterable
import math

from dataset.items import Sound
from dataset.spans import Span

ONE_FRAME = 1.0 + 1e-6
"""Frames that sound may miss at either end of a clip without a word from the user."""


def covered_frames(sound: Sound, fps: float) -> tuple[float, float]:
    """The sound's extent in video frames of the source: from frame `a` (may be negative) to frame `b`."""
    first, last = sound.extent_s
    return (first - sound.zero_s) * fps, (last - sound.zero_s) * fps


def usable_frames(sound: Sound, fps: float, n_frames: int) -> tuple[int, int]:
    """Frames [first, end) of a source of `n_frames` whose sound misses at most a frame at either end."""
    a, b = covered_frames(sound, fps)
    first, end = max(0, math.ceil(a - ONE_FRAME)), min(n_frames, math.floor(b + ONE_FRAME))
    return (first, max(first, end))


def missing_frames(sound: Sound, fps: float, span: Span) -> float:
    """Frames without sound at the worse end of a clip; 0 when it is covered."""
    a, b = covered_frames(sound, fps)
    return max(0.0, min(a - span.start, span.frames), min(span.end - b, span.frames))


def uncovered(sound: Sound, fps: float, spans: Iterable[Span]) -> list[Span]:
    """Clips of which the sound misses more than a frame."""
    return [span for span in spans if missing_frames(sound, fps, span) > ONE_FRAME]
