"""Mouths against sounds: of each clip its own, of each clip every other one's, and the goals that follow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
import numpy as np

from evaluation.sync import SyncResult, correlation_at, sync_of, unavailable
from tools.proof.inputs import Item
from tools.proof.recipe import FPS, LAG, TRAINED_R, UNTRAINED_R, ZERO_GAP


@dataclass(frozen=True)
class Mouth:
    """What was measured on one clip."""

    item: Item
    opening: Float[np.ndarray, " N"]
    """Opening of each frame; NaN where it is not seen, and in frame 0, which is given."""
    sync: SyncResult
    """With the item's own sound."""


Stage = Sequence[Mouth]
"""The clips of one stage (rendered, reconstructed, before, after), one an item."""


@dataclass(frozen=True)
class Summary:
    """A stage in numbers; means over the clips in which something could be measured, None where there is none."""

    clips: int
    measured: int
    mean_r: float | None
    least_r: float | None
    largest_lag: int | None
    """The best lag that is farthest from 0, in frames."""
    mean_other: float | None
    """Mean correlation with the envelopes of the other sounds, over all ordered pairs."""
    mean_size_other: float | None
    """Mean of its absolute value."""
    mean_alike: float | None = None
    """Mean correlation of the sounds with each other: what a perfect mouth would show in `mean_other`."""


@dataclass(frozen=True)
class Goal:
    """Something that shall hold, what was found, and whether it holds."""

    wanted: str
    found: str
    is_met: bool


def read_opening(frames: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, " N"] | str:
    """The mouth's opening with the given frame 0 taken out, or why there is none."""
    from evaluation.mouth import NoMouthError, mouth_opening

    try:
        opening = mouth_opening(frames)
    except NoMouthError as error:
        return str(error)
    opening[0] = np.nan
    return opening


def measure(item: Item, frames: UInt8[np.ndarray, "N H W 3"], envelope: Float[np.ndarray, " N"]) -> Mouth:
    """A clip's mouth against its own sound's envelope."""
    opening = read_opening(frames)
    if isinstance(opening, str):
        return Mouth(item, np.full(len(frames), np.nan), unavailable(opening))
    return Mouth(item, opening, sync_of(opening, envelope))


def envelopes_of(items: Sequence[Item], frames: int) -> dict[str, Float[np.ndarray, " N"]]:
    """Sound's name → envelope over the clip."""
    from common.media.sound import mono16k, read_sound
    from common.timebase import AUDIO_SAMPLE_RATE_HZ
    from evaluation.sync import speech_envelope

    paths = {item.sound: item.audio for item in items}
    return {name: speech_envelope(mono16k(read_sound(path)), AUDIO_SAMPLE_RATE_HZ, frames, FPS)
            for name, path in paths.items()}


def cross_correlation(stage: Stage, envelopes: Mapping[str, Float[np.ndarray, " N"]]) -> Float[np.ndarray, "S S"]:
    """[driving sound, other sound]: mean r at lag 0 over the faces, NaN where nothing could be measured."""
    names = list(envelopes)
    table = np.full((len(names), len(names)), np.nan)
    for i, driving in enumerate(names):
        for j, other in enumerate(names):
            values = [correlation_at(mouth.opening, envelopes[other], 0) for mouth in stage
                      if mouth.item.sound == driving]
            known = [value for value in values if value is not None]
            table[i, j] = np.mean(known) if known else np.nan
    return table


def envelope_correlation(envelopes: Mapping[str, Float[np.ndarray, " N"]]) -> Float[np.ndarray, "S S"]:
    """How the sounds correlate with each other, which is what a perfect mouth would show with another's sound.

    Over the frames that the mouths are measured in: all but the first.
    """
    return np.atleast_2d(np.corrcoef([envelope[1:] for envelope in envelopes.values()]))


def off_diagonal(table: Float[np.ndarray, "S S"]) -> Float[np.ndarray, " P"]:
    """The known values of all ordered pairs."""
    values = table[~np.eye(len(table), dtype=bool)]
    return values[np.isfinite(values)]


def summarise(stage: Stage, envelopes: Mapping[str, Float[np.ndarray, " N"]]) -> Summary:
    """The numbers of a stage."""
    known = [mouth.sync for mouth in stage if mouth.sync.r is not None]
    rs = [sync.r for sync in known if sync.r is not None]
    lags = [sync.best_lag for sync in known if sync.best_lag is not None]
    others, alike = (off_diagonal(table) for table in (cross_correlation(stage, envelopes),
                                                       envelope_correlation(envelopes)))
    return Summary(
        clips=len(stage), measured=len(known), mean_r=float(np.mean(rs)) if rs else None,
        least_r=min(rs, default=None), largest_lag=max(lags, key=abs, default=None),
        mean_other=float(others.mean()) if len(others) else None,
        mean_size_other=float(np.abs(others).mean()) if len(others) else None,
        mean_alike=float(alike.mean()) if len(alike) else None)


def read_gaps(metrics: Path) -> list[dict[str, Any]]:
    """The validations of a run, in order, from its metrics.jsonl."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row.get("event") == "validation"]


def sync_goals(title: str, before: Summary, after: Summary) -> list[Goal]:
    """What must hold of a set of sounds."""
    goals = [
        _inside("before training the mouth does not follow the sound", before.mean_r),
        Goal("a mouth is seen and moves in every clip", f"{after.measured} of {after.clips}",
             after.measured == after.clips),
        Goal(f"mean r at lag 0 is {TRAINED_R} or more", number(after.mean_r),
             after.mean_r is not None and after.mean_r >= TRAINED_R),
        Goal(f"r is highest within {LAG} frame of lag 0 in every clip", lag(after.largest_lag),
             after.largest_lag is not None and abs(after.largest_lag) <= LAG)]
    if after.mean_other is not None and after.mean_alike is not None:
        goals.append(_inside("the mouth does not follow the sound of another clip, beyond what the sounds share",
                             after.mean_other - after.mean_alike))
    return [Goal(f"{title}: {goal.wanted}", goal.found, goal.is_met) for goal in goals]


def gap_goals(rows: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """What must hold of the audio-shift gap: none at the start, positive at the end."""
    gaps = [row["audio_gap"] for row in rows]
    first, last = (gaps[0], gaps[-1]) if gaps else (None, None)
    return [Goal("Held-out clips: before training the audio-shift gap is 0", number(first, 5),
                 first is not None and abs(first) < ZERO_GAP),
            Goal("Held-out clips: after training it is positive", number(last, 5), last is not None and last > 0)]


def _inside(wanted: str, value: float | None) -> Goal:
    limit = UNTRAINED_R
    return Goal(f"{wanted}: mean r within ±{limit}", number(value), value is not None and abs(value) <= limit)


def number(value: float | None, digits: int = 3) -> str:
    """A signed number, or a dash."""
    return "–" if value is None else f"{value:+.{digits}f}"


def lag(value: int | None) -> str:
    """A lag in frames, or a dash."""
    return "–" if value is None else f"{value:+d} frames" if value else "0 frames"
