"""The course of a run as a picture and a table: losses over steps, and what the right sound was worth.

Everything is read from ``metrics.jsonl``, so that a run in a folder that has one already goes on with its curves.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
import json
import math
from pathlib import Path
from typing import Any

from common.atomic import write_text
from common.logs import get_logger
from common.plots import draw
from training.callbacks import Onlooker, Outcome, Run, RunState, StepReport, ValidationReport

log = get_logger(__name__)

PICTURE, TABLE = "loss_history.png", "loss_history.json"


@dataclass
class RunHistory:
    """One run of the folder, step by step; None stands for a figure that is no number."""

    name: str
    offset: int
    """Added to a step to place it behind the runs before: 0 for the first."""
    steps: list[int] = field(default_factory=list)
    losses: list[float | None] = field(default_factory=list)
    averages: list[float | None] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Wall time of each step; 0 where a log does not tell."""
    validations: list[Mapping[str, Any]] = field(default_factory=list)
    """Validation lines of the log, as they stand there."""

    @property
    def end(self) -> int:
        """Place of the last step."""
        last = max([0, *self.steps[-1:], *(one["step"] for one in self.validations[-1:])])
        return self.offset + last

    def validated(self, name: str) -> tuple[list[int], list[float]]:
        """(places, values) of a validation figure, where it is a number."""
        found = [(self.offset + one["step"], one[name]) for one in self.validations if is_number(one.get(name))]
        return [place for place, _ in found], [value for _, value in found]

    def validated_at(self, level: int) -> tuple[float, list[int], list[float]]:
        """(noise level, places, held-out losses) of the level number `level`; nothing where it was not measured."""
        found = [(self.offset + one["step"], one["by_sigma"][level]) for one in self.validations
                 if level < len(one.get("by_sigma") or ()) and is_number(one["by_sigma"][level]["held_out_loss"])]
        return (found[0][1]["sigma"] if found else 0.0, [place for place, _ in found],
                [figures["held_out_loss"] for _, figures in found])

    def cut(self, step: int) -> None:
        """Forget what came after `step`."""
        kept = sum(one <= step for one in self.steps)
        del self.steps[kept:], self.losses[kept:], self.averages[kept:], self.seconds[kept:]
        self.validations = [one for one in self.validations if one["step"] <= step]


@dataclass(frozen=True)
class Lowest:
    """The smallest loss of all that was drawn."""

    name: str
    """`held_out_loss`, or `loss_average` where nothing was held out."""
    place: int
    """On the picture's axis."""
    step: int
    """Of its run."""
    value: float


def read_history(metrics: Path) -> list[RunHistory]:
    """The runs that ``metrics.jsonl`` tells of, in order.

    A run that begins at step 1 comes behind the one before it; one that goes on counting lies on the same steps, and
    what its predecessors did beyond its beginning is left out.
    """
    runs: list[RunHistory] = []
    for line in read_lines(metrics):
        event = line.get("event")
        if event == "start":
            goes_on = bool(runs) and line["first_step"] > 1
            offset = 0 if not runs else runs[-1].offset if goes_on else runs[-1].end
            for earlier in runs if goes_on else ():
                if earlier.offset == offset:
                    earlier.cut(line["first_step"] - 1)
            runs.append(RunHistory(line["run"], offset))
        elif runs and event == "validation":
            runs[-1].validations.append(line)
        elif runs and event is None and "loss" in line:
            runs[-1].steps.append(line["step"])
            runs[-1].losses.append(_number(line["loss"]))
            runs[-1].averages.append(_number(line.get("loss_average")))
            runs[-1].seconds.append(_number(line.get("seconds")) or 0.0)
    return runs


def read_lines(metrics: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of ``metrics.jsonl``; torn ones are passed over."""
    torn = 0
    with open(metrics, encoding="utf-8") as file:
        for text in file:
            try:
                yield json.loads(text)
            except ValueError:
                torn += 1
    if torn:
        log.debug("%s: lines that a run was killed in the middle of, and that are passed over: %d", metrics, torn)


def best_of(runs: Sequence[RunHistory]) -> Lowest | None:
    """The lowest held-out loss; None where none was measured."""
    found = [Lowest("held_out_loss", place, place - run.offset, value) for run in runs
             for place, value in zip(*run.validated("held_out_loss"), strict=True)]
    return min(found, key=lambda one: one.value) if found else None


def lowest_of(runs: Sequence[RunHistory]) -> Lowest | None:
    """The lowest held-out loss, else the lowest moving average: where it has its whole window, if it comes to that."""
    if (best := best_of(runs)) is not None:
        return best
    found = [Lowest("loss_average", run.offset + step, step, value) for run in runs
             for step, value in zip(run.steps, run.averages, strict=True) if value is not None]
    full = [one for one in found if one.step >= RunState.WINDOW]
    return min(full or found, key=lambda one: one.value) if found else None


def history_table(runs: Sequence[RunHistory]) -> dict[str, Any]:
    """What is drawn, as plain data; `offset` + step is the place on the picture's axis."""
    best, lowest = best_of(runs), lowest_of(runs)
    return {"runs": [{"run": run.name, "offset": run.offset, "step": run.steps, "loss": run.losses,
                      "loss_average": run.averages, "validation": run.validations} for run in runs],
            "lowest_held_out_loss": best and {"place": best.place, "held_out_loss": best.value},
            "minimum": lowest and asdict(lowest)}


def draw_history(runs: Sequence[RunHistory], path: Path, *, title: str = "") -> None:
    """Write the picture: losses above, below them those by noise level and the gaps, where any were measured."""
    more: list[tuple[Callable[[Any, Sequence[RunHistory]], None], str]] = []
    if any(run.validated_at(0)[1] for run in runs):
        more.append((_draw_levels, "held-out loss by noise level"))
    if any(run.validated("audio_gap")[0] for run in runs):
        more.append((_draw_gaps, "loss above the right sound's"))
    height = 6 + 2.5 * len(more)
    draw(lambda figure: _paint(figure, runs, more, title), path, size=(10, height), dpi=150)


def _paint(figure: Any, runs: Sequence[RunHistory],
           more: Sequence[tuple[Callable[[Any, Sequence[RunHistory]], None], str]], title: str) -> None:
    height = figure.get_figheight()
    # Margins in inches: matplotlib's own layout engines draw everything once more to find them.
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.5 / height, top=1 - 0.35 / height, hspace=0.08)
    panels = figure.subplots(1 + len(more), 1, sharex=True, squeeze=False, height_ratios=(3, *[2] * len(more)))[:, 0]
    _draw_losses(panels[0], runs)
    panels[0].set(ylabel="loss", title=title)
    for panel, (draw_on, label) in zip(panels[1:], more, strict=True):
        draw_on(panel, runs)
        panel.set(ylabel=label)
    for panel in panels:
        panel.legend(loc="best", fontsize="small")
        panel.grid(alpha=0.3)
        for run in runs[1:]:
            panel.axvline(run.offset, color="tab:gray", linestyle=":", linewidth=0.8)
    panels[-1].set(xlabel="optimiser step")


def _draw_losses(panel: Any, runs: Sequence[RunHistory]) -> None:
    for number, run in enumerate(runs):
        places = [run.offset + step for step in run.steps]
        first = number == 0
        panel.plot(*thinned(places, _drawable(run.losses)), color="tab:blue", alpha=0.25, linewidth=0.7,
                   label="training loss" if first else None)
        panel.plot(places, _drawable(run.averages), color="tab:blue", label="moving average" if first else None)
    held_out = [run.validated("held_out_loss") for run in runs]
    for number, (at, values) in enumerate(pair for pair in held_out if pair[0]):
        panel.plot(at, values, color="tab:orange", marker=".", label="held-out loss" if number == 0 else None)
    if (lowest := lowest_of(runs)) is not None:
        panel.axhline(lowest.value, color="tab:red", linestyle="--", linewidth=0.9)
        panel.plot(lowest.place, lowest.value, color="tab:red", marker="v", linestyle="none",
                   label="lowest " + ("held-out loss" if lowest.name == "held_out_loss" else "moving average"))
        # At the right edge: beside the point it would hide the curves, or run out of the picture.
        panel.annotate(f"min {lowest.value:.4g} @ step {lowest.step}", (1, lowest.value), color="tab:red",
                       xycoords=("axes fraction", "data"), xytext=(-4, 4), textcoords="offset points", ha="right",
                       fontsize="small")


def thinned(places: Sequence[int], values: Sequence[float], most: int = 3000) -> tuple[list[int], list[float]]:
    """At most `most` points that look like all of them: of each stretch its lowest and its highest.

    A curve of 20,000 points takes seconds to draw, and the picture is no wider than 1500.
    """
    if len(places) <= most:
        return list(places), list(values)
    size = math.ceil(2 * len(places) / most)
    kept: list[int] = []
    for first in range(0, len(places), size):
        part = [at for at in range(first, min(first + size, len(places))) if not math.isnan(values[at])]
        kept += sorted({min(part, key=values.__getitem__), max(part, key=values.__getitem__)}) if part else [first]
    return [places[at] for at in kept], [values[at] for at in kept]


def _draw_levels(panel: Any, runs: Sequence[RunHistory]) -> None:
    from matplotlib import colormaps

    count = max(len(one.get("by_sigma") or ()) for run in runs for one in run.validations)
    for level in range(count):
        curves = [curve for curve in (run.validated_at(level) for run in runs) if curve[1]]
        for number, (sigma, at, values) in enumerate(curves):
            panel.plot(at, values, color=colormaps["viridis"](0.9 * level / max(1, count - 1)), marker=".",
                       label=f"noise level {sigma:g}" if number == 0 else None)


def _draw_gaps(panel: Any, runs: Sequence[RunHistory]) -> None:
    panel.axhline(0, color="tab:gray", linewidth=0.8)
    for name, words, colour in (("audio_gap", "shifted sound", "tab:green"), ("null_gap", "no sound", "tab:purple")):
        curves = [pair for pair in (run.validated(name) for run in runs) if pair[0]]
        for number, (at, values) in enumerate(curves):
            panel.plot(at, values, color=colour, marker=".", label=words if number == 0 else None)


def is_number(value: Any) -> bool:
    """Whether a figure of the log is one that can be drawn."""
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


def _drawable(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


class LossHistory(Onlooker):
    """``loss_history.png`` and ``.json`` beside ``metrics.jsonl``: every few steps, at validations and at the end.

    Stands behind `StepLog` in the list of callbacks, whose lines it reads. All of them are read each time, so a long
    run is drawn more seldom: when a fiftieth of its steps came new, so that drawing never costs a share that grows.
    """

    SHARE = 50

    def __init__(self, folder: Path, title: str, every: int = 100) -> None:
        super().__init__()
        self.folder, self.title, self.every = folder, title, every
        self._drawn, self._is_due = 0, False

    def on_start(self, run: Run) -> None:
        """Count from where the run stands."""
        self._drawn = run.state.step

    def on_step(self, run: Run, report: StepReport) -> None:
        """Bring both up to date every `every` steps, or more seldom (see above)."""
        if report.step % self.every == 0 and report.step - self._drawn >= report.step // self.SHARE:
            self._drawn, self._is_due = report.step, True

    def while_computing(self, run: Run) -> None:
        """Draw, where it is due, while the next step is computed."""
        if self._is_due:
            self._write(run)

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """Bring both up to date."""
        self._write(run)

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Bring both up to date, however the run ended."""
        self._write(run)

    def _write(self, run: Run) -> None:
        self._is_due = False
        metrics = self.folder / "metrics.jsonl"
        if not run.processes.is_main or not metrics.is_file():
            return
        runs = [one for one in read_history(metrics) if one.steps or one.validations]
        if not runs:
            return
        with self.writing(self.folder / TABLE):
            write_text(self.folder / TABLE, json.dumps(history_table(runs)))
        with self.writing(self.folder / PICTURE):
            draw_history(runs, self.folder / PICTURE, title=self.title)
