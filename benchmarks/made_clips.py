"""Clips that are made on the fly where they would be decoded, so that a benchmark needs no files and no decoder."""

from dataclasses import dataclass

import numpy as np

from common.media.item import Media


@dataclass(frozen=True)
class MadeClip:
    """A clip of moving stripes with noise; `number` makes it another one."""

    number: int
    frames: int
    height: int
    width: int


def make_clip(clip: MadeClip) -> Media:
    """The frames as the encoders take them: one picture of noise, rolled; a fraction of what decoding would cost."""
    rng = np.random.default_rng(clip.number)
    picture = rng.integers(0, 256, (clip.height, clip.width, 3), np.uint8)
    picture[:, ::16] //= 4
    frames = np.empty((clip.frames, clip.height, clip.width, 3), np.uint8)
    for index in range(clip.frames):
        frames[index] = np.roll(picture, (index, 2 * index), (0, 1))
    return Media(n_frames=clip.frames, fps=16.0, frames=frames, size=(clip.width, clip.height))
