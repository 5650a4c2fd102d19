"""The course of a run as a picture and a table: losses over steps, and what the right sound was worth.

Everything is read from ``metrics.jsonl``, so that a run in a folder that has one already goes on with its curves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import json
import math
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.logs import get_logger
from training.callbacks import Callback, Outcome, Run, ValidationReport

log = get_logger(__name__)

PICTURE, TABLE = "loss_history.png", "loss_history.json"


@dataclass
class RunHistory:
    """One run of the folder, step by step."""

    name: str
    offset: int
    """Added to a step to place it behind the runs before: 0 for the first."""
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    averages: list[float] = field(default_factory=list)
    validations: list[Mapping[str, Any]] = field(default_factory=list)
    """Validation lines of the log, as they stand there."""

    @property
    def end(self) -> int:
        """Place of the last step."""
        last = max([0, *self.steps[-1:], *(one["step"] for one in self.validations[-1:])])
        return self.offset + last

    def validated(self, name: str) -> tuple[list[int], list[float]]:
        """(places, values) of a validation figure, where it is a number."""
        found = [(self.offset + one["step"], one[name]) for one in self.validations if _is_number(one.get(name))]
        return [place for place, _ in found], [value for _, value in found]


def read_history(metrics: Path) -> list[RunHistory]:
    """The runs that ``metrics.jsonl`` tells of, in order.

    A run that begins at step 1 comes behind the one before it; one that goes on counting lies on the same steps.
    """
    runs: list[RunHistory] = []
    for line in _lines(metrics):
        event = line.get("event")
        if event == "start":
            goes_on = bool(runs) and line["first_step"] > 1
            offset = 0 if not runs else runs[-1].offset if goes_on else runs[-1].end
            runs.append(RunHistory(line["run"], offset))
        elif runs and event == "validation":
            runs[-1].validations.append(line)
        elif runs and event is None and _is_number(line.get("loss")):
            runs[-1].steps.append(line["step"])
            runs[-1].losses.append(line["loss"])
            runs[-1].averages.append(line["loss_average"])
    return runs


def _lines(metrics: Path) -> Iterator[Mapping[str, Any]]:
    torn = 0
    with open(metrics, encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except ValueError:
                torn += 1
    if torn:
        log.debug("%s: lines that a run was killed in the middle of, and that are passed over: %d", metrics, torn)


def best_of(runs: Sequence[RunHistory]) -> tuple[int, float] | None:
    """(place, value) of the lowest held-out loss; None where none was measured."""
    found = [pair for run in runs for pair in zip(*run.validated("held_out_loss"), strict=True)]
    return min(found, key=lambda pair: pair[1]) if found else None


def history_table(runs: Sequence[RunHistory]) -> dict[str, Any]:
    """What is drawn, as plain data; `offset` + step is the place on the picture's axis."""
    best = best_of(runs)
    return {"runs": [{"run": run.name, "offset": run.offset, "step": run.steps, "loss": run.losses,
                      "loss_average": run.averages, "validation": run.validations} for run in runs],
            "lowest_held_out_loss": None if best is None else {"place": best[0], "held_out_loss": best[1]}}


def draw_history(runs: Sequence[RunHistory], path: Path, *, title: str = "") -> None:
    """Write the picture: losses above, and below them the gaps where any was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from common.atomic import atomic_path

    has_gaps = any(run.validated("audio_gap")[0] for run in runs)
    figure = Figure(figsize=(9, 6.5 if has_gaps else 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if has_gaps else 1, 1, sharex=True, squeeze=False,
                             height_ratios=(3, 2) if has_gaps else (1,))[:, 0]
    _draw_losses(panels[0], runs)
    panels[0].set(ylabel="loss", title=title)
    if has_gaps:
        _draw_gaps(panels[1], runs)
        panels[1].set(ylabel="loss above the right sound's")
    for panel in panels:
        panel.legend(loc="best", fontsize="small")
        for run in runs[1:]:
            panel.axvline(run.offset, color="tab:gray", linestyle=":", linewidth=0.8)
    panels[-1].set(xlabel="optimiser step")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _draw_losses(panel: Any, runs: Sequence[RunHistory]) -> None:
    for number, run in enumerate(runs):
        places = [run.offset + step for step in run.steps]
        first = number == 0
        panel.plot(places, run.losses, color="tab:blue", alpha=0.25, linewidth=0.7,
                   label="training loss" if first else None)
        panel.plot(places, run.averages, color="tab:blue", label="moving average" if first else None)
    held_out = [run.validated("held_out_loss") for run in runs]
    for number, (at, values) in enumerate(pair for pair in held_out if pair[0]):
        panel.plot(at, values, color="tab:orange", marker=".", label="held-out loss" if number == 0 else None)
    best = best_of(runs)
    if best is not None:
        panel.plot(*best, color="tab:red", marker="v", linestyle="none",
                   label=f"lowest held-out loss: {best[1]:.4f} at {best[0]}")


def _draw_gaps(panel: Any, runs: Sequence[RunHistory]) -> None:
    panel.axhline(0, color="tab:gray", linewidth=0.8)
    for name, words, colour in (("audio_gap", "shifted sound", "tab:green"), ("null_gap", "no sound", "tab:purple")):
        curves = [pair for pair in (run.validated(name) for run in runs) if pair[0]]
        for number, (at, values) in enumerate(curves):
            panel.plot(at, values, color=colour, marker=".", label=words if number == 0 else None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


class LossHistory(Callback):
    """``loss_history.png`` and ``loss_history.json`` beside ``metrics.jsonl``, at every validation and at the end.

    Stands behind `StepLog` in the list of callbacks, whose lines it reads.
    """

    def __init__(self, folder: Path, title: str) -> None:
        self.folder, self.title = folder, title

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """Bring both up to date."""
        self._write(run)

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Bring both up to date, however the run ended."""
        self._write(run)

    def _write(self, run: Run) -> None:
        metrics = self.folder / "metrics.jsonl"
        if not run.processes.is_main or not metrics.is_file():
            return
        runs = [one for one in read_history(metrics) if one.steps or one.validations]
        if not runs:
            return
        write_text(self.folder / TABLE, json.dumps(history_table(runs)))
        draw_history(runs, self.folder / PICTURE, title=self.title)
