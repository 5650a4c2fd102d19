"""Pieces of speech for clips: cut anywhere, and two speakers who take turns."""

from collections.abc import Sequence

from jaxtyping import Float32
import numpy as np

PEAK = 0.8
PAUSE_S = 0.15
"""Between utterances that are put one after the other."""
TURN_S = (0.7, 1.5)
"""Shortest and longest turn of a speaker."""
OVERLAP_S = (0.10, 0.35)
"""How long both speak where one takes over."""
FADE_S = 0.06


def random_piece(rng: np.random.Generator, utterances: Sequence[Float32[np.ndarray, " U"]], length: int,
                 sample_rate: int) -> Float32[np.ndarray, " T"]:
    """`length` samples from anywhere in random utterances, put one after the other at the same peak."""
    parts: list[np.ndarray] = []
    spare = int(rng.integers(0, sample_rate))
    while sum(map(len, parts)) < length + spare:
        speech = utterances[int(rng.integers(len(utterances)))]
        parts += [PEAK * speech / max(float(np.abs(speech).max()), 1e-4),
                  np.zeros(int(PAUSE_S * sample_rate), np.float32)]
    joined = np.concatenate(parts).astype(np.float32)
    start = int(rng.integers(0, len(joined) - length + 1))
    return joined[start:start + length]


def take_turns(rng: np.random.Generator, sounds: Sequence[Float32[np.ndarray, " T"]], sample_rate: int
               ) -> list[Float32[np.ndarray, " T"]]:
    """Sounds of one length, each silent where another has its turn but for a short overlap; a random one begins."""
    length = len(sounds[0])
    gates = np.zeros((len(sounds), length), np.float32)
    speaker, start = int(rng.integers(len(sounds))), 0
    while start < length:
        end = start + int(rng.uniform(*TURN_S) * sample_rate)
        gates[speaker, start:end + int(rng.uniform(*OVERLAP_S) * sample_rate)] = 1
        speaker, start = (speaker + 1) % len(sounds), end
    half = int(FADE_S * sample_rate / 2)
    slope = np.hanning(2 * half + 1)
    smooth = [np.convolve(np.pad(gate, half, mode="edge"), slope / slope.sum(), "valid") for gate in gates]
    return [(sound * gate).astype(np.float32) for sound, gate in zip(sounds, smooth, strict=True)]
