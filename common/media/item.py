"""What the encoders of cached features receive: the decoded media of one clip."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Media:
    """Decoded media of one clip; an encoder names the fields that it needs, the others may be None.

    Pictures are uint8 RGB already at the bucket's size: `frames` and `control` ``[N H W 3]``, `reference` ``[H W 3]``;
    or float32 in -1…1, where a generation keeps the fractions of `exact_frames`.
    `sound` is float32 mono at 16 kHz ``[T]``: the clip's span or the whole file, as the encoder's scope says.
    `n_frames` video frames at `fps` frames a second is the clip's length, also where `frames` is None. `size` is the
    bucket's (width, height); None for a whole source, which has none.
    """

    n_frames: int
    fps: float
    frames: np.ndarray | None = None
    control: np.ndarray | None = None
    reference: np.ndarray | None = None
    caption: str | None = None
    sound: np.ndarray | None = None
    size: tuple[int, int] | None = None
