"""Sounds to train the small audio encoder on: synthesised speech changed in many ways, and sounds that are no speech.

Synthesised voices are clean, dry and few. Real recordings have rooms, microphones, noise, other speakers, other
spectra: every clip is changed at random in several of these ways. What the encoder shall tell is computed from the
sound as it is heard, so no change makes a target wrong.
"""

from collections.abc import Sequence
from multiprocessing import get_context
import os

from jaxtyping import Float32
import numpy as np

from tools.heads.turns import random_piece
from tools.tiny.speech import RATE_HZ

Sound = Float32[np.ndarray, " T"]
Rng = np.random.Generator


def random_sound(rng: Rng, utterances: Sequence[Sound], length: int) -> Sound:
    """`length` samples at 16 kHz: a voice or what sounds a little like one, in a room, through a microphone."""
    sound = voice(rng, utterances, length) if rng.random() < 0.85 else bursts(rng, length)
    if rng.random() < 0.2:
        other = voice(rng, utterances, length) if rng.random() < 0.6 else bursts(rng, length)
        sound = sound + 10 ** (rng.uniform(-20, 0) / 20) * other
    if rng.random() < 0.25:
        sound = sound * 10 ** (slow_curve(rng, length, 6) / 20)
    if rng.random() < 0.4:
        sound = room(rng, sound)
    if rng.random() < 0.85:
        sound = microphone(rng, sound)
    if rng.random() < 0.7:
        sound = sound + noise_at(rng, sound, rng.uniform(3, 50))
    if rng.random() < 0.15:
        loud = float(np.abs(sound).max()) + 1e-6
        sound = np.tanh(sound / loud * rng.uniform(1, 5))
    if rng.random() < 0.15:
        start, size = rng.integers(0, length), rng.integers(RATE_HZ // 8, RATE_HZ)
        sound = sound.copy()
        sound[start:start + size] *= 10 ** (rng.uniform(-60, -20) / 20)
    peak = float(np.abs(sound).max()) + 1e-6
    return (sound / peak * rng.uniform(0.05, 0.95)).astype(np.float32)


def voice(rng: Rng, utterances: Sequence[Sound], length: int) -> Sound:
    """Speech, most often at another speed and pitch."""
    factor = float(np.exp(rng.uniform(-0.3, 0.3))) if rng.random() < 0.7 else 1.0
    piece = random_piece(rng, utterances, int(length * factor) + 2, RATE_HZ)
    return np.interp(np.arange(length) * factor, np.arange(len(piece)), piece)


def bursts(rng: Rng, length: int) -> np.ndarray:
    """Harmonic tones and coloured noise that swell and fade a few times a second, with pauses."""
    times = np.arange(length) / RATE_HZ
    pitch = 110 * np.exp(rng.uniform(-0.3, 1.1) + slow_curve(rng, length, 0.15))
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    top = int(min(30, 7000 / pitch.max()))
    strength = np.arange(1, top + 1) ** -rng.uniform(0.5, 2.0) * np.exp(rng.normal(0, 0.7, top))
    tones = sum(weight * np.sin(n * phase + rng.uniform(0, 6.28)) for n, weight in enumerate(strength, start=1))
    swelling = [np.clip(slow_curve(rng, length, 1.0, per_second=rng.uniform(4, 14)) + rng.uniform(-0.3, 0.6), 0, None)
                for _ in range(2)]
    hiss = coloured(rng, length, rng.uniform(-0.5, 1.0))
    share = rng.uniform(0, 1) ** 2
    whole = (1 - share) * tones / (np.std(tones) + 1e-6) * swelling[0] + share * hiss * swelling[1]
    return whole * (0.3 + 0.7 * (np.sin(2 * np.pi * rng.uniform(0.2, 1) * times + rng.uniform(0, 6.28)) > -0.7))


def slow_curve(rng: Rng, length: int, size: float, per_second: float = 3.0) -> np.ndarray:
    """A smooth random curve of deviation about `size` that turns about `per_second` times a second."""
    knots = max(3, int(length / RATE_HZ * per_second) + 2)
    places = np.linspace(0, knots - 1, length)
    low = places.astype(int).clip(max=knots - 2)
    share = 0.5 - 0.5 * np.cos(np.pi * (places - low))
    values = rng.normal(0, size, knots)
    return values[low] * (1 - share) + values[low + 1] * share


def room(rng: Rng, sound: np.ndarray) -> np.ndarray:
    """The sound and a tail of decaying noise after it: 60 dB in 0.1 to 0.9 seconds."""
    seconds = rng.uniform(0.1, 0.9)
    times = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    tail = rng.normal(0, 1, len(times)) * 10 ** (-3 * times / seconds)
    tail *= 10 ** (rng.uniform(-15, 3) / 20) / np.sqrt((tail ** 2).sum())
    tail[0] = 1
    size = 2 ** int(np.ceil(np.log2(len(sound) + len(tail))))
    return np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(tail, size), size)[:len(sound)]


def microphone(rng: Rng, sound: np.ndarray) -> np.ndarray:
    """The sound through a random equaliser, at times without its lowest or highest part."""
    hertz = np.fft.rfftfreq(len(sound), 1 / RATE_HZ)
    octaves = np.log2(np.maximum(hertz, 40) / 40)
    decibels = np.interp(octaves, np.linspace(0, 7.7, 8), rng.normal(0, rng.uniform(1, 8), 8))
    if rng.random() < 0.4:
        decibels -= 24 * np.clip(np.log2(rng.uniform(60, 350) / np.maximum(hertz, 1)), 0, 3)
    if rng.random() < 0.3:
        decibels -= 36 * np.clip(np.log2(np.maximum(hertz, 1) / rng.uniform(2500, 7000)), 0, 2)
    return np.fft.irfft(np.fft.rfft(sound) * 10 ** (decibels / 20), len(sound))


def coloured(rng: Rng, length: int, slope: float) -> np.ndarray:
    """Noise of deviation 1 whose power falls as frequency ** -(2 slope)."""
    shape = np.maximum(np.fft.rfftfreq(length, 1 / RATE_HZ), 20.0) ** -slope
    noise = np.fft.irfft(shape * np.fft.rfft(rng.normal(0, 1, length)), length)
    return noise / noise.std()


def noise_at(rng: Rng, sound: np.ndarray, ratio_db: float) -> np.ndarray:
    """Coloured noise, at times with the hum of the mains, `ratio_db` below the sound."""
    noise = coloured(rng, len(sound), rng.uniform(0, 1.2))
    if rng.random() < 0.15:
        noise = noise + np.sin(2 * np.pi * rng.choice([50, 60, 100, 120]) * np.arange(len(sound)) / RATE_HZ)
    return noise * (np.std(sound) + 1e-6) * 10 ** (-ratio_db / 20)


def random_sounds(utterances: Sequence[Sound], count: int, length: int, seed: int) -> Float32[np.ndarray, "count T"]:
    """`count` of `random_sound` on all cores; each depends on the seed and its own number."""
    _SHARED.update(utterances=utterances, length=length, seed=seed)
    with get_context("fork").Pool(os.cpu_count()) as pool:
        return np.stack(pool.map(_numbered, range(count), chunksize=16))


_SHARED: dict = {}
"""What the forked processes of `random_sounds` read."""


def _numbered(number: int) -> Sound:
    return random_sound(np.random.default_rng([_SHARED["seed"], 31, number]), _SHARED["utterances"], _SHARED["length"])
