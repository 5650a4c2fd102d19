"""Sizes that clips are trained at: musubi-tuner's bucket rules, with the multiple taken from the model's variant."""

from dataclasses import dataclass
from functools import cached_property
import math


@dataclass(frozen=True)
class Buckets:
    """The sizes of one dataset entry.

    Without bucketing there is one size, `resolution` rounded down to `multiple`, for pictures and videos alike. With
    it `resolution` is an area, and a source takes the size with the nearest aspect ratio. `no_upscale` keeps a source
    that is not larger than the area at its own size, rounded down.

    Source: musubi-tuner `dataset/bucket.py` (its step is 16 for Wan).
    """

    resolution: tuple[int, int]
    """(width, height)."""
    enabled: bool = False
    no_upscale: bool = False
    multiple: int = 16

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Every (width, height) on offer, sorted."""
        width, height = self.resolution
        if not self.enabled:
            return ((_floor(width, self.multiple), _floor(height, self.multiple)),)
        area = width * height
        side = math.isqrt(area)
        found = set()
        for w in range(max(_floor(side // 2, self.multiple), self.multiple), side + self.multiple, self.multiple):
            h = _floor(area // w, self.multiple)
            if h:
                found |= {(w, h), (h, w)}
        return tuple(sorted(found))

    def choose(self, width: int, height: int) -> tuple[int, int]:
        """Size for a source of `width` x `height` pixels as shown; (0, 0) for one below a multiple."""
        if not self.enabled:
            return self.sizes[0]
        if self.no_upscale and width * height <= self.resolution[0] * self.resolution[1]:
            own = _floor(width, self.multiple), _floor(height, self.multiple)
            return own if all(own) else (0, 0)
        aspect = width / height
        return min(self.sizes, key=lambda size: abs(size[0] / size[1] - aspect))


def _floor(value: int, multiple: int) -> int:
    return value // multiple * multiple
