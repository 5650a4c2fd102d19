"""Tiny media files made on the spot, whose pictures carry their number and whose sound can be found again."""

from fractions import Fraction
from pathlib import Path
import struct

import av
import numpy as np

BITS = 10
BLOCK = 16
WIDTH, HEIGHT = BITS * BLOCK, 64


def numbered(number: int) -> np.ndarray:
    """A picture 160x64 with `number` (below 1024) written as ten black or white columns."""
    bits = [(number >> bit) & 1 for bit in range(BITS)]
    return np.repeat(np.tile(np.repeat(np.array(bits, np.uint8) * 220 + 16, BLOCK), (HEIGHT, 1))[:, :, None], 3, axis=2)


def number_of(picture: np.ndarray) -> int:
    """The number that `numbered` wrote, from a picture of any size."""
    height, width = picture.shape[:2]
    columns = picture[height // 4: 3 * height // 4].mean(axis=(0, 2))
    middles = [columns[round((bit + 0.5) * width / BITS)] for bit in range(BITS)]
    return sum(int(value > 128) << bit for bit, value in enumerate(middles))


def numbers_of(frames: np.ndarray) -> list[int]:
    """`number_of` every frame."""
    return [number_of(frame) for frame in frames]


def write_clip(path: Path, times_s: list[float], *, pictures: list[np.ndarray] | None = None, codec: str = "libx264",
               pix_fmt: str = "yuv420p", options: dict[str, str] | None = None, tick: Fraction = Fraction(1, 90_000),
               samples: np.ndarray | None = None, rate: int = 48_000, sound_start_s: float = 0.0,
               sound_codec: str = "aac", container: dict[str, str] | None = None) -> Path:
    """Encode `pictures` (numbered ones by default) at `times_s`, and `samples` ``[C T]`` from `sound_start_s` on."""
    pictures = pictures or [numbered(index) for index in range(len(times_s))]
    with av.open(str(path), "w", options=container or {}) as out:
        video = out.add_stream(codec, rate=30, options={"preset": "ultrafast"} | (options or {})
                               if codec == "libx264" else options or {})
        video.height, video.width, video.pix_fmt = *pictures[0].shape[:2], pix_fmt
        video.time_base = video.codec_context.time_base = tick
        audio = None
        if samples is not None:
            audio = out.add_stream(sound_codec, rate=rate, layout={1: "mono", 2: "stereo"}[len(samples)])
        for time_s, picture in zip(times_s, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(Fraction(time_s) / tick), tick
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        if audio is not None:
            _write_samples(out, audio, samples, rate, sound_start_s)
    return path


def _write_samples(out, audio, samples: np.ndarray, rate: int, start_s: float) -> None:
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    for start in range(0, samples.shape[1], 1024):
        block = np.ascontiguousarray(samples[:, start:start + 1024].astype(np.float32))
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = start + round(start_s * rate)
        out.mux(audio.encode(frame))
    out.mux(audio.encode(None))


def steady(count: int, fps: float | Fraction) -> list[float]:
    """Time stamps of `count` pictures at a constant rate."""
    return [float(index / Fraction(fps)) for index in range(count)]


def noise(duration_s: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Smooth noise ``[C T]``: found again by correlation even after lossy coding."""
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((channels, round(duration_s * rate) + 8))
    return np.stack([np.convolve(row, np.ones(9) / 9, "valid") for row in white]).astype(np.float32) * 0.3


def beeps(times_s: list[float], duration_s: float, rate: int, length_s: float = 0.05) -> np.ndarray:
    """Silence ``[1 T]`` with a 1 kHz tone that begins at each of `times_s`."""
    samples = np.zeros((1, round(duration_s * rate)), np.float32)
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(round(length_s * rate)) / rate)
    for time_s in times_s:
        start = round(time_s * rate)
        samples[0, start:start + len(tone)] = tone[: samples.shape[1] - start]
    return samples


def onsets_s(signal: np.ndarray, rate: float, threshold: float) -> list[float]:
    """Times at which `signal` rises above `threshold` after having been below it for 0.3 s."""
    loud = np.flatnonzero(signal > threshold)
    return [index / rate for place, index in enumerate(loud) if place == 0 or index - loud[place - 1] > 0.3 * rate]


def lag(found: np.ndarray, expected: np.ndarray) -> int:
    """Samples by which `found` is later than `expected`."""
    size = 1 << (2 * max(len(found), len(expected))).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(expected, size)), size)
    best = int(correlation.argmax())
    return best if best < size // 2 else best - size


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write (a, b, c, d) of a display matrix into the first track header of an MP4 file."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4
    place = start + 40 if data[start] == 0 else start + 52
    a, b, c, d = (value << 16 for value in matrix)
    data[place:place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
