"""The report of a demo: tables as Markdown, everything as JSON, strips and plots."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
import json
import os
from pathlib import Path
from typing import Any

from jaxtyping import Float
import numpy as np

from common.atomic import write_text
from tools.proof.inputs import Item
from tools.proof.measure import (
    Goal,
    Stage,
    Summary,
    cross_correlation,
    envelope_correlation,
    envelopes_of,
    lag,
    measure,
    number,
    off_diagonal,
    summarise,
    sync_goals,
)
from tools.proof.recipe import FRAMES
from tools.proof.reference import Clips

WORDS = {"rendered": "rendered (the law itself)", "reconstructed": "reconstructed by the VAE",
         "before": "generated, before training", "after": "generated, after training"}


@dataclass
class Proof:
    """One set of items, its clips of each stage, and what was measured on them."""

    title: str
    items: Sequence[Item]
    clips: dict[str, Clips] = field(default_factory=dict)
    """Stage → item's name → frames."""
    stages: dict[str, Stage] = field(default_factory=dict)
    envelopes: dict[str, Float[np.ndarray, " N"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.envelopes = envelopes_of(self.items, FRAMES)

    def add(self, stage: str, clips: Clips) -> None:
        """Measure the clips of a stage."""
        self.clips[stage] = clips
        self.stages[stage] = [measure(item, clips[item.name], self.envelopes[item.sound]) for item in self.items]

    def summary(self, stage: str) -> Summary:
        """The numbers of a stage."""
        return summarise(self.stages[stage], self.envelopes)

    def goals(self) -> list[Goal]:
        """What must hold."""
        return sync_goals(self.title, self.summary("before"), self.summary("after"))


def proof_markdown(proof: Proof) -> str:
    """A line a stage, the sounds' own correlation, and a line a clip."""
    return "\n".join(_proof_lines(proof)) + "\n"


def _proof_lines(proof: Proof) -> Iterator[str]:
    several = len(proof.envelopes) > 1
    yield f"## {proof.title}"
    yield ""
    yield "| | clips with a mouth | mean r at lag 0 | least | best lag farthest from 0 |" + (
        " mean r with another sound (mean size) |" if several else "")
    yield "|---|---|---|---|---|" + ("---|" if several else "")
    for stage in proof.stages:
        one = proof.summary(stage)
        other = f" {number(one.mean_other)} ({number(one.mean_size_other).lstrip('+')}) |" if several else ""
        yield (f"| {WORDS[stage]} | {one.measured} of {one.clips} | {number(one.mean_r)} | {number(one.least_r)} | "
               f"{lag(one.largest_lag)} |{other}")
    if several:
        mutual = off_diagonal(envelope_correlation(proof.envelopes))
        yield f"| the sounds with each other | | | | | {number(mutual.mean())} ({abs(mutual).mean():.3f}) |"
    yield ""
    yield "| face | sound | before | after |"
    yield "|---|---|---|---|"
    for before, after in zip(proof.stages["before"], proof.stages["after"], strict=True):
        yield f"| {after.item.face} | {after.item.sound} | {before.sync} | {after.sync} |"


def goals_markdown(goals: Sequence[Goal]) -> str:
    """A line a goal."""
    rows = [f"| {goal.wanted} | {goal.found} | {'yes' if goal.is_met else '**no**'} |" for goal in goals]
    return "\n".join(["| goal | found | met |", "|---|---|---|", *rows]) + "\n"


def gaps_markdown(validations: Sequence[Mapping[str, Any]]) -> str:
    """A line a validation: loss of the held-out clips, and what wrong or no sound adds to it."""
    rows = [f"| {row['step']} | {row['held_out_loss']:.4f} | {number(row['audio_gap'], 5)} | "
            f"{number(row['null_gap'], 5)} |" for row in validations]
    heads = "| step | loss of held-out clips | more with the sound shifted | more without sound |"
    return "\n".join([heads, "|---|---|---|---|", *rows]) + "\n"


def draw(proof: Proof, folder: Path, prefix: str = "") -> list[Path]:
    """Strip of the first item, mouths over envelopes of all, and tables of every mouth against every sound."""
    from evaluation.plot import plot_panels, plot_sync, plot_tables
    from evaluation.strip import write_strip

    strip, sync = folder / f"{prefix}strip.png", folder / f"{prefix}sync.png"
    first = proof.items[0]
    write_strip(strip, [(WORDS[stage], clips[first.name]) for stage, clips in proof.clips.items()],
                levels=proof.envelopes[first.sound], columns=10, height=96)
    pairs = list(zip(proof.stages["before"], proof.stages["after"], strict=True))
    if len(proof.items) == 1:
        [(before, after)] = pairs
        plot_sync(sync, {"before": before.opening, "after": after.opening}, proof.envelopes[first.sound],
                  title=f"{first.name}, after training: {after.sync}")
        return [strip, sync]
    panels = [(f"{after.item.name}: r {number(before.sync.r, 2)} → {number(after.sync.r, 2)}",
               {"before": before.opening, "after": after.opening}, proof.envelopes[after.item.sound])
              for before, after in pairs]
    plot_panels(sync, panels, columns=len(proof.envelopes) if len(proof.envelopes) <= 6 else 4)
    if len(proof.envelopes) == 1:
        return [strip, sync]
    tables = {f"mouths, {stage} training": cross_correlation(proof.stages[stage], proof.envelopes)
              for stage in ("before", "after")}
    cross = folder / f"{prefix}cross.png"
    plot_tables(cross, {**tables, "the sounds with each other": envelope_correlation(proof.envelopes)},
                list(proof.envelopes), axes_labels=("the clip's sound", "sound it is compared with"))
    return [strip, sync, cross]


def _as_json(proof: Proof) -> dict[str, Any]:
    """Everything that was measured, with the curves, for other programs."""
    return {
        "title": proof.title,
        "envelopes": {name: _rounded(envelope) for name, envelope in proof.envelopes.items()},
        "envelope_correlation": _rounded(envelope_correlation(proof.envelopes)),
        "stages": {name: {
            "summary": asdict(proof.summary(name)),
            "cross_correlation": _rounded(cross_correlation(stage, proof.envelopes)),
            "clips": [{"face": mouth.item.face, "sound": mouth.item.sound, "seed": mouth.item.seed,
                       **asdict(mouth.sync), "opening": _rounded(mouth.opening)} for mouth in stage],
        } for name, stage in proof.stages.items()},
    }


def write_report(folder: Path, text: str, proofs: Sequence[Proof], facts: Mapping[str, Any]) -> list[Path]:
    """Write proof.md and proof.json; `facts` are what the JSON tells of the run beside the measurements."""
    import torch

    table, values = folder / "proof.md", folder / "proof.json"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    told = {"device": device, "torch": torch.__version__, **facts, "proofs": list(map(_as_json, proofs))}
    write_text(table, text)
    write_text(values, json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return [table, values]


def _rounded(values: np.ndarray) -> list[Any]:
    """Nested lists of numbers with four digits; NaN becomes None."""
    return [_rounded(row) for row in values] if values.ndim > 1 else [
        None if np.isnan(value) else round(float(value), 4) for value in values]
