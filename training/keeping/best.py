"""The best measurement of a run, and the checkpoint that is kept of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import math
from pathlib import Path
from typing import Any, ClassVar

from common.logs import get_logger
from training.callbacks import Callback, Run, RunState, ValidationReport
from training.keeping.states import put_aside

log = get_logger(__name__)


@dataclass(frozen=True)
class Metric:
    """A figure of the held-out clips that is to improve."""

    name: str = "held_out_loss"
    """`held_out_loss`, of which less is better, or `audio_gap`, of which more is."""

    @property
    def words(self) -> str:
        """The name as it is said."""
        return self.name.replace("_", " ").replace("held out", "held-out")

    def of(self, report: ValidationReport) -> float | None:
        """Its value; None where it was not measured or is no number."""
        if self.name == "held_out_loss":
            value: float | None = report.loss
        else:
            assert self.name == "audio_gap", self.name
            value = None if report.audio is None else report.audio.gap
        return value if value is not None and math.isfinite(value) else None

    def basis(self, report: ValidationReport) -> str:
        """Values of one basis can be compared."""
        return f"{self.name} {report.basis}"

    def improvement(self, best: float, current: float) -> float:
        """By how much `current` is better than `best`."""
        return current - best if self.name == "audio_gap" else best - current


class BestCheckpoint(Callback):
    """Keeps the network of the best measurement in one file, replaced whole whenever a later one is better.

    What the run starts from is the bar to beat and is not written: a file of an earlier run under the same name goes
    only when there is something better to take its place. Where a run goes on with something else that is measured, the
    file so far is put aside. `write(path, state)` must leave a whole file or none; where it cannot (a full disk), the
    next improvement is tried.
    """

    state_name: ClassVar[str] = "best"

    def __init__(self, path: Path, write: Callable[[Path, RunState], None], metric: Metric) -> None:
        self.path, self.metric = path, metric
        self.step: int | None = None
        """Step of the best measurement, 0 for the start; None before any."""
        self.value: float | None = None
        self.words = ""
        """All figures of that measurement in one line."""
        self.failures = 0
        self._basis = ""
        self._write = write

    @property
    def is_written(self) -> bool:
        """Whether the file is there and of this run."""
        return bool(self.step) and self.path.is_file()

    def remembered(self) -> dict[str, Any]:
        """The best measurement."""
        return {"step": self.step, "value": self.value, "words": self.words, "basis": self._basis}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Take it up."""
        self.step, self.value, self.words = values["step"], values["value"], values["words"]
        self._basis = values["basis"]

    def on_start(self, run: Run) -> None:
        """Say so where a file of an earlier run may be replaced."""
        if run.processes.is_main and not run.is_resumed and self.path.is_file():
            log.warning("%s is of an earlier run; this one replaces it at its first improvement", self.path)

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """Write the network where it is better than all that was measured before."""
        value = self.metric.of(report)
        if value is not None and self._basis != (basis := self.metric.basis(report)):
            self._begin_anew(run, basis)
        if value is None or (self.value is not None and self.metric.improvement(self.value, value) <= 0):
            return
        if report.step and not self._is_saved(run):
            return
        self.step, self.value, self.words = report.step, value, report.words

    def _begin_anew(self, run: Run, basis: str) -> None:
        """Forget a measurement that the next one cannot be compared with."""
        if self.value is not None and run.processes.is_main:
            aside = put_aside(self.path, "left").name if self.is_written else "not kept"
            log.warning("what is measured has changed since the best measurement (step %s, %s); the best checkpoint "
                        "begins anew. The one so far: %s", self.step, self.words, aside)
        self.step, self.value, self.words, self._basis = None, None, "", basis

    def _is_saved(self, run: Run) -> bool:
        try:
            run.processes.from_first(lambda: self._write(self.path, run.state))
        except OSError as error:
            self.failures += 1
            if run.processes.is_main:
                log.warning("%s could not be written (%s). Training goes on; free some space.", self.path, error)
            return False
        run.saved(self.path)
        return True
