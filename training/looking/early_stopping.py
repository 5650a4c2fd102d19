"""Ends a run when what is measured on held-out clips no longer improves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from common.logs import get_logger
from training.callbacks import Callback, Run, ValidationReport
from training.keeping.best import Metric

log = get_logger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long a run may go on without an improvement."""

    steps: int = 0
    """Optimiser steps since the best measurement; 0 for any number."""
    evals: int = 0
    """Measurements without improvement in a row; 0 for any number."""
    min_delta: float = 0.0
    """An improvement is more than this."""

    def ended(self, steps: int, evals: int) -> str:
        """How much patience is used up, in words; empty while there is some left."""
        if self.steps and steps >= self.steps:
            return f"{steps} steps"
        if self.evals and evals >= self.evals:
            return f"{evals} evaluation{'' if evals == 1 else 's'}"
        return ""


class EarlyStopping(Callback):
    """Stops the run as `Patience` says; its final files are written as at the last step.

    The first measurement is the best one; a later one is where it is better by more than `min_delta`. Any other is
    counted, and ends the run when it comes `steps` optimiser steps or more after the best one, or is the `evals`-th in
    a row. One that failed, or that is no number, is not looked at. Where a run goes on with something else that is
    measured, the first one is the best again.

    A run that had stopped, and is started again, ends at once (its final files may be missing), unless it is to go on:
    then patience begins anew, and the best measurement stays.
    """

    state_name: ClassVar[str] = "early_stopping"

    def __init__(self, patience: Patience, metric: Metric, *, goes_on: bool = False) -> None:
        """`goes_on`: whether a run that had stopped shall go on all the same; a longer run than that does anyway."""
        self.patience, self.metric, self._goes_on = patience, metric, goes_on
        self.best: float | None = None
        self.best_step = 0
        self.count = 0
        """Measurements since the best one, or since patience began."""
        self._since = 0
        """Step that patience is counted from."""
        self._stopped, self._total_steps = "", 0
        """Why the run was stopped, and how long it was to be."""
        self._basis = ""

    def remembered(self) -> dict[str, Any]:
        """The best measurement, its step, how many came after it, and whether that was the end."""
        return {"best": self.best, "best_step": self.best_step, "count": self.count, "since": self._since,
                "basis": self._basis, "stopped": self._stopped, "total_steps": self._total_steps}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Take them up."""
        self.best, self.best_step, self.count = values["best"], values["best_step"], values["count"]
        self._since, self._basis = values["since"], values["basis"]
        self._stopped, self._total_steps = values["stopped"], values["total_steps"]

    def on_start(self, run: Run) -> None:
        """Stop again, or go on with new patience, where the run had stopped."""
        if self._stopped and not self._goes_on and run.total_steps <= self._total_steps:
            run.stop(self._stopped)
        elif self._stopped:
            self._stopped, self._since, self.count = "", run.state.step, 0
            self._say(run, f"The run had stopped and goes on: patience begins anew at step {run.state.step}")
        self._total_steps = run.total_steps

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """Compare with the best measurement, and stop where patience is at its end."""
        current = self.metric.of(report)
        if current is None:
            if run.processes.is_main:
                log.warning("[early-stop] step %d: no %s was measured%s; it is not looked at", report.step,
                            self.metric.words, f" ({report.note})" if report.note else "")
            return
        if self._basis != (basis := self.metric.basis(report)):
            if self.best is not None:
                self._say(run, "What is measured has changed; patience begins anew")
            self.best, self._basis = None, basis
        if self.best is None or self.metric.improvement(self.best, current) > self.patience.min_delta:
            self.best, self.best_step, self._since, self.count = current, report.step, report.step, 0
            self._say(run, f"New best eval {current:.6g} at step {report.step}")
            return
        self.count += 1
        steps, patience = report.step - self._since, self.patience
        self._say(run, f"no_improve_evals={self.count}, step_delta={steps}, best_eval={self.best:.6g}, "
                       f"curr_eval={current:.6g}, min_delta={patience.min_delta:g}, patience_steps={patience.steps}, "
                       f"patience_evals={patience.evals}")
        if ended := patience.ended(steps, self.count):
            self._say(run, f"No eval improvement for {ended}. Stopping.")
            self._stopped = (f"early stopping: no better {self.metric.words} for {ended}; best {self.best:.6g} at step "
                             f"{self.best_step}")
            run.stop(self._stopped)

    def _say(self, run: Run, text: str) -> None:
        if run.processes.is_main:
            log.info("[early-stop] %s", text)
