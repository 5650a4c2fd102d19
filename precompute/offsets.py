"""By how many frames the sound of each source comes after its mouth, where a mouth can be read.

The meter reads rendered mouths (`evaluation/mouth.py`). On filmed faces it mostly finds none, and then there is no
number.
"""

from dataclasses import asdict, dataclass
import json
import os
from pathlib import Path

from common.atomic import write_text
from common.errors import MediaError
from common.logs import get_logger
from common.media.sound import mono16k, read_sound
from common.media.video import probe_video, read_frames
from common.progress import progress
from common.timebase import AUDIO_SAMPLE_RATE_HZ
from dataset.config import load_dataset_config
from dataset.items import Item
from dataset.open import open_dataset
from dataset.schema import AudioShort
from evaluation.sync import SyncResult, measure_sync, unavailable
from precompute.processes import process_index

log = get_logger(__name__)

FILE = "omnituner-offsets.json"
LONGEST_S = 20.0
"""Seconds of a source that are looked at, from its start."""
SHORTEST_S = 2.0
"""Over less than this some lag fits by chance."""
LEAST_R = 0.6
"""Correlation at the best lag below which the mouth follows the sound at no lag."""
SIDE = 320
"""Pictures are read at this length of their short side, or smaller."""


@dataclass(frozen=True)
class Offset:
    """What was measured of a source; `offset_frames` is None where nothing can be told, and `reason` says why."""

    offset_frames: int | None
    """Frames by which the sound comes after the picture; negative: before."""
    r: float | None
    """Correlation of mouth and sound at that offset."""
    fps: float
    reason: str = ""

    @classmethod
    def of(cls, result: SyncResult, fps: float) -> "Offset":
        """From the meter's result."""
        if result.r_at_best is None:
            return cls(None, None, fps, result.reason)
        if result.r_at_best < LEAST_R:
            return cls(None, None, fps, f"the mouth follows the sound at no lag (r {result.r_at_best:+.2f} at best; "
                                        f"{LEAST_R:g} is asked for)")
        return cls(result.best_lag, round(result.r_at_best, 3), fps)


def measure_offsets(dataset_config: str | os.PathLike[str], *, audio_short: AudioShort | None = None
                    ) -> dict[str, Offset]:
    """Measure every source that has pictures and sound; tell those that are off, and write `FILE` to each cache folder.

    Only the first process of a launch does anything. Returns what was measured by the source's name.
    """
    if process_index()[0] != 0:
        return {}
    dataset = open_dataset(load_dataset_config(dataset_config), audio_short=audio_short)
    found: dict[Path, dict[str, Offset]] = {}
    for item in progress(dataset.items, desc="measuring offsets", unit="source"):
        if item.kind == "video" and item.sound is not None:
            found.setdefault(item.cache, {})[item.name] = offset_of(item)
    for folder, offsets in found.items():
        write_text(folder / FILE, json.dumps({name: asdict(one) for name, one in sorted(offsets.items())}, indent=1,
                                             ensure_ascii=False) + "\n")
    joined = {name: one for offsets in found.values() for name, one in offsets.items()}
    _tell(joined)
    return joined


def offset_of(item: Item) -> Offset:
    """The offset of one source, over its first seconds."""
    assert item.sound is not None
    fps = item.fps
    frames = min(item.n_frames, int(LONGEST_S * fps))
    if frames < SHORTEST_S * fps:
        return Offset.of(unavailable(f"{frames / fps:.2f} s; {SHORTEST_S:g} s are needed"), fps)
    try:
        if not item.media.path.exists() or not item.sound.file.path.exists():
            return Offset.of(unavailable("the file is not there"), fps)
        pictures = read_frames(item.media.path, fps=item.clock.fps, count=frames, size=_small(item.media.path),
                               source_fps=item.clock.source_fps)
        sound = mono16k(read_sound(item.sound.file.path), from_s=item.sound.zero_s, duration_s=frames / fps)
        return Offset.of(measure_sync(pictures, sound, sample_rate=AUDIO_SAMPLE_RATE_HZ, fps=fps), fps)
    except MediaError as error:
        return Offset.of(unavailable(str(error)), fps)


def _small(path: Path) -> tuple[int, int] | None:
    info = probe_video(path)
    shrink = min(1.0, SIDE / min(info.width, info.height))
    return None if shrink == 1 else (round(info.width * shrink), round(info.height * shrink))


def moving(offset_s: float) -> str:
    """FFmpeg's filter that moves a sound which comes `offset_s` after the picture (negative: before) to its place."""
    if offset_s > 0:
        return f"atrim=start={offset_s:.3f},asetpts=PTS-STARTPTS"
    return f"adelay={-offset_s * 1000:.0f}:all=1"


def _tell(offsets: dict[str, Offset]) -> None:
    known = {name: one for name, one in offsets.items() if one.offset_frames is not None}
    for name, one in known.items():
        if one.offset_frames:
            seconds = one.offset_frames / one.fps
            log.warning("%s: the sound comes %d frames (%.0f ms) %s the mouth (r %.2f). Take the source out, or move "
                        "its sound: ffmpeg -i IN -c:v copy -af %s OUT", name, abs(one.offset_frames),
                        abs(seconds) * 1000, "after" if seconds > 0 else "before", one.r, moving(seconds))
    reasons = sorted({one.reason for one in offsets.values() if one.offset_frames is None})
    unknown = len(offsets) - len(known)
    shown = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more reasons" if len(reasons) > 3 else "")
    log.info("offsets: measured in %d of %d sources%s (%s)", len(known), len(offsets),
             f"; unavailable in {unknown}: {shown}" if unknown else "", FILE)
