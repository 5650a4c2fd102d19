"""The laws by which a rendered mouth follows its sound: how far it opens, and how wide it spreads."""

from dataclasses import dataclass

from jaxtyping import Float
import numpy as np

from evaluation.sync import LEVEL_PERCENTILE, WINDOW_S, speech_envelope

FPS = 25
"""Video frames a second of every rendered clip."""
LOW_HZ = (100, 1000)
HIGH_HZ = (1500, 7000)
BALANCE_DB = -12.0
"""High band relative to the low band at which a mouth is neither wide nor round; the middle of voiced speech."""
RANGE_DB = 12.0
AUDIBLE = 0.2
"""Share of the clip's level from which a sound spreads the mouth fully."""


@dataclass(frozen=True)
class MouthCurves:
    """What one mouth does: `opening` ``N`` in 0…1 and `spread` ``N`` in -1…1 (round to wide), one value a frame."""

    opening: Float[np.ndarray, " N"]
    spread: Float[np.ndarray, " N"]


def mouth_opening(samples: Float[np.ndarray, " T"], sample_rate: int, frames: int) -> Float[np.ndarray, " N"]:
    """How far the mouth opens in each of `frames` frames, in 0…1: `evaluation.sync.speech_envelope` at 25 fps."""
    return speech_envelope(samples, sample_rate, frames, FPS)


def mouth_spread(samples: Float[np.ndarray, " T"], sample_rate: int, frames: int) -> Float[np.ndarray, " N"]:
    """How wide the mouth is in each frame: 1 wide, in bright, hissing sound, -1 round, in dark; 0 in silence.

    spread(k) = a(k) * tanh((b(k) + 12) / 12), with b(k) = 10 log10(H(k) / L(k)) in decibels and
    a(k) = clip(sqrt(E(k)) / (0.2 level), 0, 1). L, H and E are the energies of frame k between 100 and 1000 Hz, between
    1500 and 7000 Hz, and of the whole spectrum: sums of |X|^2, X the Fourier transform of the sound times the root of
    the 160 ms Hann window of `speech_envelope`. level is the 95th percentile of sqrt(E) over the frames. Only the
    balance of bass and treble matters, not the loudness, and both laws look at the same stretch of sound.
    """
    half = round(WINDOW_S / 2 * sample_rate)
    offsets = np.arange(-half, half)
    root = np.cos(np.pi * offsets / sample_rate / WINDOW_S)
    padded = np.pad(np.asarray(samples, np.float64), half)
    middles = np.minimum(((np.arange(frames) + 0.5) / FPS * sample_rate).astype(int), len(samples) + half)
    pieces = np.stack([_piece(padded, m, 2 * half) for m in middles]) * root
    power = np.abs(np.fft.rfft(pieces, axis=1)) ** 2
    hertz = np.fft.rfftfreq(2 * half, 1 / sample_rate)
    low, high = (power[:, (hertz >= a) & (hertz < b)].sum(1) for a, b in (LOW_HZ, HIGH_HZ))
    loud = np.sqrt(power.sum(1))
    level = np.percentile(loud, LEVEL_PERCENTILE)
    audible = np.clip(loud / max(AUDIBLE * level, 1e-6), 0, 1)
    floor = 1e-9 * power.sum(1) + 1e-12
    balance = 10 * np.log10((high + floor) / (low + floor))
    return audible * np.tanh((balance - BALANCE_DB) / RANGE_DB)


def _piece(padded: np.ndarray, start: int, length: int) -> np.ndarray:
    part = padded[start:start + length]
    return np.pad(part, (0, length - len(part)))


def mouth_curves(samples: Float[np.ndarray, " T"], sample_rate: int, frames: int) -> MouthCurves:
    """Both laws at once."""
    return MouthCurves(mouth_opening(samples, sample_rate, frames), mouth_spread(samples, sample_rate, frames))
