"""The whole sound of a video, heard at its frames: at once, or a long one in windows; and what a chunk hears of it."""

import math
import tempfile

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from common.features import AFTER, AUDIO_HALO, BEFORE, rows_of_span
from common.logs import get_logger
from common.timebase import AUDIO_SAMPLE_RATE_HZ
from wan.encoders.audio import AudioEncoder
from wan.encoders.audio_base import HearingModel

log = get_logger(__name__)

CONTEXT_S = 10.0
"""Sound on each side of a window's middle, which is heard and not kept (at most a quarter of the window)."""


def hear(encoder: HearingModel, sound: Float[np.ndarray, " T"], *, rows: int, fps: float, window_s: float
         ) -> Float[Tensor, "N K D"]:
    """The states of a mono 16 kHz sound at `rows` video frames; beyond its end silence is heard.

    A sound of up to `window_s` seconds is encoded whole, as caches do. A longer one is normalised as a whole and then
    heard in windows of that length, of which the middle is kept: memory is that of one window, and the rows lie in a
    temporary file. Group norm and attention then reach over the window alone, so the numbers differ a little.
    """
    if len(sound) <= window_s * AUDIO_SAMPLE_RATE_HZ or not encoder.hears_all_at_once:
        return encoder.encode(torch.from_numpy(sound), sample_rate=AUDIO_SAMPLE_RATE_HZ, fps=fps, frames=rows).cpu()
    assert isinstance(encoder, AudioEncoder)
    waveform = encoder.prepared(torch.from_numpy(sound), AUDIO_SAMPLE_RATE_HZ)
    states = _on_disk(rows, encoder.states, encoder.width)
    context = math.ceil(min(CONTEXT_S, window_s / 4) * fps)
    step = max(math.floor(window_s * fps) - 2 * context, 1)
    log.info("the sound is %.0f s long and heard in %d windows of %.0f s", len(sound) / AUDIO_SAMPLE_RATE_HZ,
             math.ceil(rows / step), window_s)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        begin, end = max(first - context, 0), min(last + context, rows)
        heard = encoder.encode_part(waveform, range(begin, end), fps)
        states[first:last] = heard[first - begin:last - begin]
    return states


def _on_disk(*shape: int) -> Tensor:
    """Zeros in a file that is gone with the tensor: 1 MB for a second of a 13-state encoder would else fill memory."""
    with tempfile.TemporaryFile() as file:  # the mapping keeps the space until it is let go
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))


def cut_rows(states: Float[Tensor, "N K D"], rows: range) -> dict[str, Float[Tensor, "1 M K D"]]:
    """What a chunk hears: `states`, its own rows, and those `before` and `after` it that a condition may reach.

    Rows outside of the sound are its edge rows again.
    """
    cut = rows_of_span(lambda start, end: states[start:end], len(states), (rows.start, rows.stop), AUDIO_HALO)
    return {name: part[None] for name, part in zip((BEFORE, "states", AFTER), cut, strict=True)}
