"""Reading sound from any container, and cutting it on the pictures' clock."""

from dataclasses import dataclass
from functools import cached_property
import math
import os
from typing import Any

from jaxtyping import Float32
import numpy as np

from common.errors import MediaError
from common.logs import get_logger
from common.media.container import check_file, open_media, picture_stream, reason, sound_stream
from common.timebase import AUDIO_SAMPLE_RATE_HZ

log = get_logger(__name__)

SOUND_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".m4a", ".aac", ".ogg", ".oga", ".opus", ".wma", ".aiff", ".aif"})
"""File endings that count as sound, in lower case."""

_DAMAGED_PACKETS_FORGIVEN = 2
_MISSING_SHARE_FORGIVEN = 0.1
_HEADER_TELLS_LENGTH = ("mp4", "mov", "flac", "wav")
_UNKNOWN_RIFF_SIZE = 0x7FFF_0000
_INTEGER_SCALE = {"u8": (128.0, 128.0), "s16": (0.0, 2.0**15), "s32": (0.0, 2.0**31), "s64": (0.0, 2.0**63)}
_Piece = tuple[float | None, np.ndarray]
"""Time of the first sample in seconds (None: unknown), samples ``[C T]``."""


@dataclass(frozen=True)
class Sound:
    """Decoded sound: float32 `samples` ``[C T]`` (full scale is 1), at `sample_rate` Hz.

    `start_s` is the time of sample 0 on the container's clock, which it shares with the pictures; 0 in a file that
    holds sound only, where nothing gives the stored value a meaning.
    """

    samples: np.ndarray
    sample_rate: int
    start_s: float = 0.0

    @property
    def duration_s(self) -> float:
        """Seconds of sound."""
        return self.samples.shape[1] / self.sample_rate

    @property
    def end_s(self) -> float:
        """Time of the sound's end on the container's clock."""
        return self.start_s + self.duration_s

    @cached_property
    def mono_16k(self) -> Float32[np.ndarray, " T"]:
        """All of the sound as mono (mean of the channels) at 16 kHz (soxr HQ), ceil(n·16000/rate) samples.

        The values of librosa.load(sr=16000), which the audio-driven models were trained with.
        """
        mono = self.samples.mean(axis=0, dtype=np.float32)
        if self.sample_rate == AUDIO_SAMPLE_RATE_HZ:
            return mono
        import soxr

        length = math.ceil(len(mono) * AUDIO_SAMPLE_RATE_HZ / self.sample_rate)
        resampled = soxr.resample(mono, self.sample_rate, AUDIO_SAMPLE_RATE_HZ, quality="HQ")[:length]
        return np.pad(resampled, (0, length - len(resampled))).astype(np.float32, copy=False)


def read_sound(path: str | os.PathLike[str]) -> Sound:
    """Read the first sound track of a sound or video file; gaps in its time stamps are filled with silence.

    Raises MediaError: missing, empty, no sound track, no samples, damaged, cut short, NaN.
    """
    check_file(path)
    with open_media(path) as container:
        stream = sound_stream(container)
        if stream is None:
            raise MediaError(f"{path}: the file has no sound track. Give one that has, or do without sound.")
        pieces, rate = _decode(path, container, stream)
        has_pictures = picture_stream(container) is not None
        promised_s = _promised_s(path, container, stream)
    samples, start_s = _join(pieces, rate)
    if samples.shape[1] == 0:
        raise MediaError(f"{path}: the sound has no samples. Replace the file.")
    found_s = samples.shape[1] / rate
    if found_s < (1 - _MISSING_SHARE_FORGIVEN) * promised_s - 0.1:
        raise MediaError(f"{path}: the sound is cut short: its header tells of {promised_s:.2f} s, {found_s:.2f} s are "
                         "there. Copy or download the file again.")
    if not np.isfinite(samples).all():
        raise MediaError(f"{path}: the sound holds NaN or infinite samples. Write the file again.")
    return Sound(samples, rate, start_s if has_pictures else 0.0)


def mono16k(sound: Sound, *, from_s: float | None = None, duration_s: float | None = None) -> Float32[np.ndarray, " T"]:
    """Mono sound at 16 kHz for the span that begins at `from_s` on the container's clock and lasts `duration_s`.

    round(duration_s·16000) samples; silence stands where the track has not begun or is over (`missing_s` tells how much
    that is). Without `from_s` the span begins with the sound, without `duration_s` it ends with it.
    """
    begin_s = sound.start_s if from_s is None else from_s
    whole = sound.mono_16k
    offset = round((begin_s - sound.start_s) * AUDIO_SAMPLE_RATE_HZ)
    length = len(whole) - offset if duration_s is None else round(duration_s * AUDIO_SAMPLE_RATE_HZ)
    span = np.zeros(max(length, 0), np.float32)
    first, last = max(offset, 0), min(offset + len(span), len(whole))
    if last > first:
        span[first - offset:last - offset] = whole[first:last]
    return span


def missing_s(sound: Sound, *, from_s: float, duration_s: float) -> float:
    """Seconds of the span that the sound does not cover: it begins later or ends earlier."""
    covered = min(sound.end_s, from_s + duration_s) - max(sound.start_s, from_s)
    return duration_s - min(max(covered, 0.0), duration_s)


def _promised_s(path: str | os.PathLike[str], container: Any, stream: Any) -> float:
    """Seconds that the header promises; 0 where it only guesses."""
    if not stream.duration or not any(name in container.format.name for name in _HEADER_TELLS_LENGTH):
        return 0.0
    duration_s = float(stream.duration * stream.time_base)
    with open(path, "rb") as file:
        head = file.read(8)
    if head[:4] == b"RIFF":
        # FFmpeg believes the file's size rather than this number. Programs that write into a pipe put a huge one.
        promised, found = int.from_bytes(head[4:], "little") + 8, os.path.getsize(path)
        return duration_s * promised / found if found < promised < _UNKNOWN_RIFF_SIZE else duration_s
    return duration_s


def _decode(path: str | os.PathLike[str], container: Any, stream: Any) -> tuple[list[_Piece], int]:
    pieces: list[_Piece] = []
    rate, channels, damaged, stated = 0, 0, 0, 0
    if stream.codec_context.name == "flac":
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except Exception as error:
            damaged += 1
            if damaged > _DAMAGED_PACKETS_FORGIVEN:
                raise MediaError(f"{path}: the sound is damaged ({reason(error)}). "
                                 "Copy or re-encode the file.") from error
            continue
        for frame in frames:
            samples = _samples(frame)
            if pieces and (frame.sample_rate != rate or len(samples) != channels):
                raise MediaError(f"{path}: the sound changes on the way from {rate} Hz, {channels} channels to "
                                 f"{frame.sample_rate} Hz, {len(samples)} channels. Re-encode the file.")
            rate, channels = frame.sample_rate, len(samples)
            time_s = None if frame.pts is None else float(frame.pts * frame.time_base)
            pieces.append((time_s, samples))
            stated = _stated_length(frame)
    if pieces:
        pieces[-1] = (pieces[-1][0], pieces[-1][1][:, :stated])
    if damaged:
        log.warning("%s: %d damaged packets of sound left out", path, damaged)
    return pieces, rate


def _samples(frame: Any) -> np.ndarray:
    """Samples of one decoded frame as float32 ``[C T]``, full scale 1."""
    name = frame.format.name
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, len(frame.layout.channels)).T
    if name.rstrip("p") in _INTEGER_SCALE:
        zero, scale = _INTEGER_SCALE[name.rstrip("p")]
        return ((data.astype(np.float64) - zero) / scale).astype(np.float32)
    return data.astype(np.float32)


def _stated_length(frame: Any) -> int:
    """Samples of a frame that count: the last one of a track may state that it is shorter than the codec's block."""
    if not frame.duration:
        return frame.samples
    stated = round(float(frame.duration * frame.time_base) * frame.sample_rate)
    # Coarse clocks round durations by up to a tick, which is no statement.
    tick = float(frame.time_base) * frame.sample_rate
    return stated if 0 < stated < frame.samples - tick else frame.samples


def _join(pieces: list[_Piece], rate: int) -> tuple[np.ndarray, float]:
    """One array from the pieces, each at its time: gaps become silence, overlaps are cut; and the first's time."""
    if not pieces:
        return np.zeros((1, 0), np.float32), 0.0
    start_s = pieces[0][0] or 0.0
    parts: list[np.ndarray] = []
    length = 0
    for time_s, samples in pieces:
        if time_s is not None:
            gap = round((time_s - start_s) * rate) - length
            # Time stamps in milliseconds wobble around the samples; only a real gap is one.
            if gap > 0.02 * rate:
                parts.append(np.zeros((len(samples), gap), np.float32))
                length += gap
            elif gap < -0.02 * rate:
                samples = samples[:, -gap:]
        parts.append(samples)
        length += samples.shape[1]
    return np.concatenate(parts, axis=1), start_s
