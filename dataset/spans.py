"""Which frames of a video become clips: musubi-tuner's `frame_extraction`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from common.timebase import floor_frame_count

ExtractionMode = Literal["head", "chunk", "slide", "uniform", "full"]


@dataclass(frozen=True, order=True)
class Span:
    """A clip of a source: `frames` (4n+1) from frame `start` at the target rate, brought to `width` x `height`."""

    start: int
    frames: int
    width: int
    height: int

    @property
    def end(self) -> int:
        """Index after the last frame."""
        return self.start + self.frames

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height


@dataclass(frozen=True)
class Extraction:
    """How clips are cut: `target_frames` are 4n+1 and sorted; the other numbers belong to single modes."""

    mode: ExtractionMode = "head"
    target_frames: tuple[int, ...] = (1,)
    stride: int = 1
    """`slide`: frames from one clip's start to the next."""
    samples: int = 1
    """`uniform`: clips per source and length."""
    max_frames: int = 129
    """`full`: longest clip."""

    def cuts(self, available: int) -> list[tuple[int, int]]:
        """(start, frames) of every clip of a source of `available` frames; empty when it is too short."""
        if available < 1:
            return []
        if self.mode == "full":
            return [(0, floor_frame_count(min(available, self.max_frames)))]
        found: dict[tuple[int, int], None] = {}
        for frames in self.target_frames:
            if available >= frames:
                found |= dict.fromkeys((start, frames) for start in self._starts(available, frames))
        return list(found)

    @property
    def shortest(self) -> int:
        """Frames that a source needs at least."""
        return 1 if self.mode == "full" else min(self.target_frames)

    def _starts(self, available: int, frames: int) -> Sequence[int] | Iterator[int]:
        last = available - frames
        if self.mode == "head":
            return [0]
        if self.mode == "chunk":
            return range(0, last + 1, frames)
        if self.mode == "slide":
            return range(0, last + 1, self.stride)
        # int(linspace(0, last, samples)), in whole numbers.
        return (index * last // max(self.samples - 1, 1) for index in range(self.samples))
