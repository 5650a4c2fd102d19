"""What `tools/designs.py` measures of each design, and its table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from statistics import median

from common.tensorfile import read_header
from tools.proof.inputs import Item
from tools.proof.measure import Summary, envelopes_of, lag, measure, number, summarise
from tools.proof.recipe import FRAMES, LAG, TRAINED_R
from tools.proof.reference import read_clips


@dataclass(frozen=True)
class Outcome:
    """One design under the protocol."""

    design: str
    parameters: int
    """Of its conditions, without the LoRA."""
    step_s: float
    """Median seconds of a training step."""
    sync: Summary

    @property
    def is_good(self) -> bool:
        """Whether every clip's mouth could be measured, follows its sound, and is in time."""
        one = self.sync
        return (one.measured == one.clips and one.mean_r is not None and one.mean_r >= TRAINED_R
                and one.largest_lag is not None and abs(one.largest_lag) <= LAG)


@dataclass(frozen=True)
class Report:
    """A further measurement: its words, and whether its goals are met."""

    text: str
    is_good: bool


def count_parameters(file: Path) -> int:
    """Numbers of the conditions in a network's file."""
    _, header = read_header(file)
    total = 0
    for name, entry in header.items():
        if name.startswith("conditions."):
            size = 1
            for length in entry["shape"]:
                size *= length
            total += size
    return total


def step_seconds(metrics: Path) -> float:
    """Median seconds of the steps of a run's metrics.jsonl."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return median(row["seconds"] for row in rows if "event" not in row)


def measure_items(items: Sequence[Item], videos: Mapping[str, Path]) -> Summary:
    """Mouths of the items' videos against their sounds."""
    envelopes, clips = envelopes_of(items, FRAMES), read_clips(videos)
    return summarise([measure(item, clips[item.name], envelopes[item.sound]) for item in items], envelopes)


def table(outcomes: Sequence[Outcome]) -> str:
    """A line a design."""
    rows = [f"| `{one.design}` | {one.parameters:,} | {one.step_s:.3f} | {number(one.sync.mean_r)} | "
            f"{number(one.sync.least_r)} | {lag(one.sync.largest_lag)} | {number(one.sync.mean_other)} |"
            for one in outcomes]
    heads = ("| design | parameters of the condition | s a step | mean r | least r | best lag farthest from 0 | mean r "
             "with another sound |")
    return "\n".join([heads, "|---|---|---|---|---|---|---|", *rows]) + "\n"
