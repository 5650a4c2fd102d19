"""What the encoders of cached features receive: the decoded media of one clip."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Media:
    """Decoded media of one clip; an encoder names the fields that it needs, the others may be None.

    Pictures are uint8 RGB already at the bucket's size: `frames` and `control` ``[N H W 3]``, `reference` ``[H W 3]``;
    or float32 in -1…1, where a generation keeps the fractions of `exact_frames`.
    Masks are pictures too, white inside, ``[N H W 3]``, or ``[1 H W 3]`` where one holds for the whole clip:
    `region_masks` by region (face, lip; those that the clip has), `speaker_regions` one for each speaker.
    `sound` is float32 mono at 16 kHz ``[T]``: the clip's span or the whole file, as the encoder's scope says;
    `voices` are those of the second and further speakers, by their number (`common.speakers`).
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
    voices: Mapping[int, np.ndarray] = field(default_factory=dict)
    region_masks: Mapping[str, np.ndarray] | None = None
    speaker_regions: tuple[np.ndarray, ...] | None = None
    size: tuple[int, int] | None = None
