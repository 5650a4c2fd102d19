"""What a video file's packets tell: time stamps, key frames, hidden pictures, and whether the file is whole."""

from dataclasses import dataclass
import os
from typing import Any

from common.errors import MediaError

MISSING_FRAMES_FORGIVEN = 2
"""A header that promises this many more frames than the file holds is harmless and noted; more means a cut file."""

MISSING_TIME_FORGIVEN = 0.1
"""Share of the header's duration that may be missing where the header (Matroska) counts no frames."""

_COUNTING_HEADERS = ("mp4", "mov", "avi")


@dataclass(frozen=True)
class Packet:
    """One coded picture: presentation and decoding time stamp and duration in ticks of the stream's time base."""

    pts: int | None
    dts: int | None
    duration: int
    is_key: bool


@dataclass(frozen=True)
class Packets:
    """`shown`: packets of the pictures to be shown, in file order. `hidden`: how many an edit list hides."""

    shown: tuple[Packet, ...]
    hidden: int
    notes: tuple[str, ...]


def read_packets(path: str | os.PathLike[str], container: Any, stream: Any) -> Packets:
    """Read all packets of `container` (left at its end) and check that `stream` is as long as its header says.

    Raises MediaError with both numbers where the file is cut short by more than a frame or two.
    """
    shown: list[Packet] = []
    hidden = 0
    last_s = 0.0
    for packet in container.demux():
        if packet.size == 0 or packet.is_corrupt:
            continue
        if packet.pts is not None:
            last_s = max(last_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream is not stream:
            continue
        if packet.is_discard:
            hidden += 1
            continue
        shown.append(Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe))
    notes = _check_whole(path, container, stream, shown, hidden, last_s)
    if hidden:
        notes.append(f"{hidden} picture{'s' * (hidden > 1)} hidden by an edit list")
    return Packets(tuple(shown), hidden, tuple(notes))


def _check_whole(path: str | os.PathLike[str], container: Any, stream: Any, shown: list[Packet], hidden: int,
                 last_s: float) -> list[str]:
    found = len(shown)
    if any(name in container.format.name for name in _COUNTING_HEADERS):
        promised = stream.frames - hidden
        # An edit list may leave packets out altogether; then the header's (edited) duration is met all the same.
        if stream.frames and promised > found and not _duration_is_met(stream, shown):
            if promised - found > MISSING_FRAMES_FORGIVEN:
                raise _cut_short(path, promised, found)
            return [f"header tells of {promised} frames, {found} are there"]
    elif "matroska" in container.format.name and container.duration and found:
        duration_s = container.duration / 1_000_000
        if duration_s - last_s > max(MISSING_TIME_FORGIVEN * duration_s, 0.5):
            raise _cut_short(path, round(found * duration_s / max(last_s, 1e-3)), found)
    return []


def _duration_is_met(stream: Any, shown: list[Packet]) -> bool:
    stamps = [packet.pts for packet in shown if packet.pts is not None]
    if not stamps or not stream.duration:
        return False
    longest = max(packet.duration for packet in shown)
    return max(stamps) + longest - min(stamps) + longest // 2 >= stream.duration


def _cut_short(path: str | os.PathLike[str], promised: int, found: int) -> MediaError:
    return MediaError(f"{path}: the file is cut short: its header tells of {promised} frames, {found} are there. "
                      "Copy or download it again, or re-encode what is left.")
