"""When each picture of a video is shown: one pass over the packets, almost without decoding, remembered per file."""

from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
import os
from typing import Any

import numpy as np

from common.errors import MediaError
from common.media.container import check_file, need_pictures, open_media, sound_stream
from common.media.first_frame import FirstFrame, first_frame
from common.media.packets import Packets, read_packets

_SEEKABLE = ("mp4", "mov", "matroska")
# Their packets do not stand for one shown picture each (hidden reference frames), so these are timed by decoding.
_HIDDEN_FRAMES = ("vp8",)


@dataclass(frozen=True)
class Timeline:
    """`pts` of the shown pictures, ascending, in `time_base` seconds; the last is shown until `end`.

    `keys` are (pts, dts) of the key frames, as far as the packets tell; `is_seekable`: the container finds them fast
    and surely. `untimed`: the file stores no time stamps and `pts` counts its pictures.
    """

    pts: np.ndarray
    time_base: Fraction
    end: int
    keys: tuple[tuple[int, int], ...] = ()
    is_seekable: bool = False
    untimed: bool = False


@dataclass(frozen=True)
class Scan:
    """Time line (on the container's clock, shared with the sound) and shape of a video.

    `width` and `height` are as shown: after turning and with square pixels. `rate` is the header's average frame rate.
    """

    timeline: Timeline
    width: int
    height: int
    first: FirstFrame
    rate: Fraction | None
    sound_start_s: float | None
    codec: str
    notes: tuple[str, ...]

    @property
    def times_s(self) -> np.ndarray:
        """Seconds of each picture since the first, float64."""
        return (self.timeline.pts - self.timeline.pts[0]) * float(self.timeline.time_base)

    @property
    def start_s(self) -> float:
        """Time stamp of the first picture on the container's clock."""
        return float(int(self.timeline.pts[0]) * self.timeline.time_base)

    @property
    def duration_s(self) -> float:
        """Seconds from the first picture to the end of the last."""
        return float((self.timeline.end - int(self.timeline.pts[0])) * self.timeline.time_base)


def scan_video(path: str | os.PathLike[str]) -> Scan:
    """Read the time line of a video file; a second call for an unchanged file costs nothing.

    Raises MediaError: no such file, empty, no pictures, damaged, or cut short (the header promises more than there is).
    """
    check_file(path)
    stat = os.stat(path)
    return _scan(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _scan(path: str, size: int, mtime_ns: int) -> Scan:
    with open_media(path) as container:
        stream = need_pictures(path, container)
        packets = read_packets(path, container, stream)
        seekable = any(name in container.format.name for name in _SEEKABLE)
        codec = stream.codec_context.name
        rate = stream.average_rate or stream.guessed_rate
        sound = sound_stream(container)
        sound_start_s = None if sound is None else float((sound.start_time or 0) * sound.time_base)
        timeline = None if codec in _HIDDEN_FRAMES else _timeline(packets, stream, rate, seekable)
    first = first_frame(path)
    width, height = first.shown_size
    timeline, notes = _from_first(timeline or _decoded_timeline(path, rate), first)
    return Scan(timeline=timeline, width=width, height=height, first=first, rate=rate, sound_start_s=sound_start_s,
                codec=codec, notes=packets.notes + first.notes + notes)


def _from_first(timeline: Timeline, first: FirstFrame) -> tuple[Timeline, tuple[str, ...]]:
    """The time line without the pictures before the first that can be decoded, and a note about them."""
    if timeline.untimed or first.pts is None:
        return timeline, ()
    lost = int(np.searchsorted(timeline.pts, first.pts))
    if not 0 < lost < len(timeline.pts):
        return timeline, ()
    return replace(timeline, pts=timeline.pts[lost:]), (f"first {lost} pictures lack their key frame and are left out",)


def _timeline(packets: Packets, stream: Any, rate: Fraction | None, seekable: bool) -> Timeline | None:
    """Time line from the packets; None where they do not tell it (no time stamps, or the same one twice)."""
    timed = {packet.pts: packet for packet in packets.shown if packet.pts is not None}
    if not timed or len(timed) < len(packets.shown):
        return None
    ordered = sorted(timed.items())
    pts = np.array([stamp for stamp, _ in ordered], np.int64)
    keys = tuple((stamp, packet.dts) for stamp, packet in ordered if packet.is_key and packet.dts is not None)
    return Timeline(pts=pts, time_base=stream.time_base, keys=keys, is_seekable=seekable,
                    end=_end(pts, ordered[-1][1].duration, rate, stream.time_base))


def _end(pts: np.ndarray, last_duration: int, rate: Fraction | None, time_base: Fraction) -> int:
    """When the last picture ends: its own duration, but no longer than the longest step before it."""
    steps = np.diff(pts)
    if len(steps):
        duration = min(last_duration, int(steps.max())) if last_duration > 0 else int(np.median(steps))
    else:
        duration = last_duration or (round(1 / rate / time_base) if rate else 1)
    return int(pts[-1]) + max(duration, 1)


def _decoded_timeline(path: str, rate: Fraction | None) -> Timeline:
    """Time line of a file whose packets do not tell it: from the decoded pictures, or by counting them."""
    with open_media(path) as container:
        stream = need_pictures(path, container)
        stream.thread_type = "AUTO"
        stamps = [(frame.pts, frame.duration or 0) for frame in container.decode(stream)]
        time_base = stream.time_base
    if not stamps:
        raise MediaError(f"{path}: no picture in it can be decoded. Re-encode the file or take it out.")
    pts = np.array([-1 if stamp is None else stamp for stamp, _ in stamps], np.int64)
    if None in (stamp for stamp, _ in stamps) or (np.diff(pts) <= 0).any():
        if not rate:
            raise MediaError(f"{path}: the file stores neither time stamps nor a frame rate. Re-encode it to MP4.")
        return Timeline(pts=np.arange(len(stamps)), time_base=1 / Fraction(rate), end=len(stamps), untimed=True)
    return Timeline(pts=pts, time_base=time_base, end=_end(pts, stamps[-1][1], rate, time_base))
