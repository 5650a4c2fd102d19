"""What a run was, how it ended and how to go on, as one page: ``run_summary.md``."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
import signal
import statistics
import time
from typing import Any

from common.atomic import write_text
from common.errors import UserError
from common.logs import get_logger
from training.callbacks import Callback, Onlooker, Outcome, Run, RunState
from training.telling.loss_plot import RunHistory, read_history
from training.telling.memory_report import GIB, device_memory
from training.telling.noise_levels import LevelRow
from training.telling.reports import duration

log = get_logger(__name__)

PAGE = "run_summary.md"
_FILES = 60


@dataclass(frozen=True)
class Sources:
    """What the page is written from, beside the run's own log."""

    folder: Path
    title: str
    facts: Sequence[tuple[str, str]] = ()
    """What was run: (name, value)."""
    best: Callable[[], str] = str
    """The best checkpoint in words; empty where none is kept."""
    noise_levels: Callable[[], Sequence[LevelRow]] = tuple
    failures: Callable[[], Mapping[str, int]] = dict
    """What failed without ending the run, and how often."""
    compiled: Callable[[], str] = str
    """What compiling came to; empty where nothing was compiled."""
    go_on: Callable[[Outcome], str] = lambda outcome: ""
    """The command to go on with."""


@dataclass(frozen=True)
class Course:
    """The run's steps and measurements, over all its sittings, from ``metrics.jsonl``."""

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    """Of all steps."""
    usual_seconds: float | None = None
    """Median of this sitting's steps, its first one left out; None for fewer than two."""
    validations: list[Mapping[str, Any]] = field(default_factory=list)


def course_of(runs: Sequence[RunHistory]) -> Course:
    """The course of the last run of the folder; sittings that lie on the same steps belong to it."""
    if not runs:
        return Course()
    sittings = [run for run in runs if run.offset == runs[-1].offset]
    usual = statistics.median(runs[-1].seconds[1:]) if len(runs[-1].seconds) > 1 else None
    return Course([loss for run in sittings for loss in run.losses if loss is not None],
                  sum(second for run in sittings for second in run.seconds), usual,
                  [one for run in sittings for one in run.validations])


def failures_of(callbacks: Iterable[Callback]) -> dict[str, int]:
    """{kind of callback: its `failures`} of those that count any."""
    counts = {type(one).__name__: getattr(one, "failures", 0) for one in callbacks}
    return {name: count for name, count in counts.items() if isinstance(count, int) and count > 0}


def ending(outcome: Outcome, run: Run) -> str:
    """How the run ended and why, in words."""
    where = f"step {run.state.step} of {run.total_steps}"
    if outcome is Outcome.FINISHED:
        return f"Finished at {where}" + (f", before the last one: {run.stop_reason}." if run.stop_reason else ".")
    return f"{outcome.value.capitalize()} after {where}: {error_words(run.error)}"


def error_words(error: BaseException | None) -> str:
    """An error as a user reads it: ours by its text, a signal by its name, others with their class."""
    if error is None:
        return "no error was told."
    if isinstance(error, KeyboardInterrupt):
        return f"stopped by {signal.Signals(getattr(error, 'number', signal.SIGINT)).name}."
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


class RunSummary(Onlooker):
    """Writes the page when the run ends, however it ends. Stands last, so that all other files are there."""

    def __init__(self, sources: Sources) -> None:
        super().__init__()
        self.sources = sources
        self._started = time.monotonic()
        self._first_step = 0

    def on_start(self, run: Run) -> None:
        """Note when and where this sitting begins."""
        self._started, self._first_step = time.monotonic(), run.state.step

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Write the page."""
        if not run.processes.is_main:
            return
        metrics = self.sources.folder / "metrics.jsonl"
        course = course_of(read_history(metrics) if metrics.is_file() else [])
        page = self.sources.folder / PAGE
        text = "\n".join(self._page(run, outcome, course)) + "\n"
        with self.writing(page):
            write_text(page, text)
            log.info("the run in a page: %s", page)

    def _page(self, run: Run, outcome: Outcome, course: Course) -> Iterator[str]:
        sources = self.sources
        yield f"# {sources.title}: {outcome.value}"
        yield f"\n{ending(outcome, run)}"
        if sources.facts:
            yield "\n## What was run\n"
            yield from _table(("", ""), sources.facts)
        yield "\n## Course\n"
        yield from _table(("", ""), self._course(run, course))
        if best := sources.best():
            yield f"\n## Best checkpoint\n\n{best}"
        if course.validations:
            yield "\n## Held-out clips by noise level\n"
            yield from _validation_table(course.validations)
        if rows := sources.noise_levels():
            yield "\n## Noise levels that were drawn\n"
            yield from _table(("noise level", "samples", "share", "by the settings", "mean training loss"), [
                (f"{row.low:g} to {row.high:g}", str(row.count), f"{row.share:.1%}", f"{row.expected:.1%}",
                 "" if row.loss is None else f"{row.loss:.4f}") for row in rows])
        yield "\n## Failures that did not end the run\n"
        failures = sources.failures()
        yield "\n".join(f"- {name}: {count}" for name, count in failures.items()) if failures else "None."
        yield "\n## Files\n"
        yield from files_in(sources.folder)
        if command := sources.go_on(outcome):
            yield f"\n## How to go on\n\n```\n{command}\n```"

    def _course(self, run: Run, course: Course) -> Iterator[tuple[str, str]]:
        state = run.state
        since = f" ({state.step - self._first_step} in this sitting)" if self._first_step else ""
        yield "steps", f"{state.step} of {run.total_steps}{since}"
        yield "epochs begun", f"{state.epoch} of {run.total_epochs}"
        yield "samples seen", str(state.samples)
        yield "time of the steps", duration(course.seconds)
        yield "time of this sitting", f"{duration(time.monotonic() - self._started)}, all told"
        if course.usual_seconds is not None:
            yield "speed", f"{course.usual_seconds:.3g} s/step (median, the first step left out)"
        if (memory := device_memory(run.processes.device)) is not None:
            yield "memory peak", f"{memory.peak / GIB:.2f} GiB on {run.processes.device}"
        if words := self.sources.compiled():
            yield "compiled blocks", words
        if course.losses:
            size = min(RunState.WINDOW, max(1, len(course.losses) // 2))
            first, last = (statistics.fmean(part) for part in (course.losses[:size], course.losses[-size:]))
            yield "training loss", f"{first:.4f} at the start, {last:.4f} at the end (means of {size} steps each)"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
        yield f"| {' | '.join(cells)} |"


def _validation_table(validations: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """First, best and last measurement at the levels of the last one: all levels together, and each."""
    levels = _levels(validations[-1])
    validations = [one for one in validations if _levels(one) == levels]
    measured = [one for one in validations if one.get("held_out_loss") is not None]
    named = [("first", validations[0]), ("last", validations[-1])]
    if measured:
        named.insert(1, ("lowest loss", min(measured, key=lambda one: float(one["held_out_loss"]))))
    rows = []
    for figure, words in (("held_out_loss", "loss"), ("audio_gap", "audio gap")):
        if figure == "audio_gap" and all(one.get(figure) is None for _, one in named):
            continue
        for name, one in named:
            parts = [level.get(figure) for level in one.get("by_sigma") or ()]
            cells = [_cell(value, figure) for value in (one.get(figure), *parts)]
            rows.append((f"{words}, {name} (step {one['step']})", *cells, *[""] * (len(levels) + 1 - len(cells))))
    yield from _table(("", "all", *levels), rows)


def _levels(validation: Mapping[str, Any]) -> list[str]:
    return [f"{level['sigma']:g}" for level in validation.get("by_sigma") or ()]


def _cell(value: float | None, figure: str) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4f}" if figure == "held_out_loss" else f"{value:+.3g}"


def files_in(folder: Path) -> Iterator[str]:
    """A list of what lies in the folder, with sizes; hidden files and the page itself left out."""
    found = sorted((path for path in folder.iterdir() if not path.name.startswith(".") and path.name != PAGE),
                   key=lambda path: path.name)
    for path in found[:_FILES]:
        yield f"- `{path.name}/`" if path.is_dir() else f"- `{path.name}` ({_size(path.stat().st_size)})"
    if len(found) > _FILES:
        yield f"- and {len(found) - _FILES} more"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"
