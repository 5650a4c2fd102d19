"""How much of every video frame is speech, by silero-vad (an optional package)."""

from fractions import Fraction
from functools import lru_cache
import importlib.metadata
from typing import Any

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError
from common.timebase import AUDIO_SAMPLE_RATE_HZ, as_fraction

PACKAGE = "silero-vad"
SHORTEST_SAMPLES = 512
"""What the detector looks at at once (32 ms); a shorter sound holds no speech."""


def detector_version() -> str:
    """Name and version, for the cache header. ConfigError with the command to install it where it is missing."""
    try:
        return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(f"--voice_activity needs {PACKAGE}, which is not installed. Run: pip install --no-deps "
                          f"{PACKAGE} (it needs nothing beside torch), or leave the flag out.") from error


def voiced_share(sound: Float[np.ndarray, " T"], frames: int, fps: float | int | Fraction) -> Float[Tensor, " N"]:
    """Share of each of `frames` video frames, 0 … 1, that lies in a stretch of speech of the sound (mono, 16 kHz)."""
    if len(sound) < SHORTEST_SAMPLES:
        return torch.zeros(frames)
    from silero_vad import get_speech_timestamps

    found = get_speech_timestamps(torch.from_numpy(np.ascontiguousarray(sound)), _detector(),
                                  sampling_rate=AUDIO_SAMPLE_RATE_HZ)
    return share_in([(int(one["start"]), int(one["end"])) for one in found], frames, fps)


def share_in(stretches: list[tuple[int, int]], frames: int, fps: float | int | Fraction) -> Float[Tensor, " N"]:
    """Share of each frame in the stretches of samples (first, end), which do not overlap each other."""
    length = float(Fraction(AUDIO_SAMPLE_RATE_HZ) / as_fraction(fps))
    begins = np.arange(frames) * length
    share = np.zeros(frames)
    for first, end in stretches:
        share += np.clip(np.minimum(begins + length, end) - np.maximum(begins, first), 0, None) / length
    return torch.from_numpy(np.clip(share, 0, 1).astype(np.float32))


@lru_cache(maxsize=1)
def _detector() -> Any:
    from silero_vad import load_silero_vad

    return load_silero_vad()
