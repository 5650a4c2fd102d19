"""When states are saved, and which ones stay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
import signal
import time
from typing import Any

from common.logs import get_logger
from training.callbacks import Callback, Outcome, Run, StepReport
from training.guard import BrokenStep
from training.keeping.snapshot import Snapshot
from training.keeping.states import find_states, remove_state, state_path, step_of
from training.loop import Loop

log = get_logger(__name__)

SAVE, SAVE_AND_QUIT = "save", "save_quit"
"""Files that a user makes in the run's folder to have the state saved, or saved and the run ended."""


@dataclass(frozen=True)
class StatePlan:
    """Where, how often, how many."""

    folder: Path
    name: str
    every_steps: int | None = None
    every_minutes: float = 10.0
    with_checkpoints: bool = False
    keep: int = 2


class StateKeeper(Callback):
    """Saves the state when it is due, when the run is asked to stop or breaks off, and at the end.

    Stands behind every callback whose memory is to be that of the step. A state that cannot be written (a full disk)
    costs a warning: the one before stays, training goes on, and the next one that is due is tried.
    """

    def __init__(self, plan: StatePlan, snapshot: Snapshot, facts: Mapping[str, Any]) -> None:
        """`facts` go into every state's index: settings, what the data are, the run's id."""
        self.plan, self.snapshot, self.facts = plan, snapshot, dict(facts)
        self.failures = 0
        self._saved_step: int | None = None
        """-1 before the first; None where the run has not begun: then nothing is new, and less may be known than in
        the state that it was to go on from."""
        self._last = time.monotonic()
        self._has_new_checkpoint = False
        self._wish: Callable[[int], None] = lambda number: None

    def on_start(self, run: Run) -> None:
        """Begin to watch the clock and the folder."""
        self._last = time.monotonic()
        run.is_state_due = self._is_due
        if isinstance(run, Loop):
            self._wish = lambda number: setattr(run.wish, "number", number)
        self._saved_step = run.state.step if run.is_resumed else -1

    def _is_due(self) -> bool:
        """Asked before a step ends, on the first process alone."""
        for name in (SAVE, SAVE_AND_QUIT):
            file = self.plan.folder / name
            if file.is_file():
                file.unlink(missing_ok=True)
                log.info("the file '%s' was found in %s: the state is saved%s", name, self.plan.folder,
                         " and the run ends" if name == SAVE_AND_QUIT else "")
                if name == SAVE_AND_QUIT:
                    self._wish(signal.SIGINT)
                return True
        return bool(self.plan.every_minutes) and time.monotonic() - self._last > 60 * self.plan.every_minutes

    def on_save(self, run: Run, path: Path) -> None:
        """A checkpoint may ask for a state beside it."""
        self._has_new_checkpoint = True

    def on_step(self, run: Run, report: StepReport) -> None:
        """Save where it is due; what the last step comes to is saved at the end."""
        plan = self.plan
        if run.is_ending:
            return
        by_count = plan.every_steps is not None and report.step % plan.every_steps == 0
        if report.is_state_due or by_count or (plan.with_checkpoints and self._has_new_checkpoint):
            self.save(run)
        self._has_new_checkpoint = False

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Save what a later start goes on from, where the weights are those of a whole step."""
        stands_alone = (run.processes.count == 1 or outcome is not Outcome.FAILED or run.is_ending
                        or isinstance(run.error, BrokenStep))
        if self._saved_step is None or (run.state.step == 0 and outcome is not Outcome.FINISHED):
            return
        if not stands_alone or not self.snapshot.is_sound:
            if run.processes.is_main:
                why = "the run was broken off at once" if stands_alone else "one process failed alone"
                log.warning("%s, so no state is saved now; the last saved one is gone on from", why)
        elif run.state.step != self._saved_step or outcome is Outcome.FINISHED:
            is_early = run.stop_reason and outcome is Outcome.FINISHED
            self.save(run, status="stopped early" if is_early else outcome.value)

    def save(self, run: Run, status: str = "running") -> None:
        """Save now; every process must come here at the same step."""
        path = state_path(self.plan.folder, self.plan.name, run.state.step)
        try:
            self.snapshot.save(path, {**self.facts, "status": status})
        except OSError as error:
            self.failures += 1
            if not run.processes.is_main:
                return
            log.warning("the state of step %d could not be saved (%s). Training goes on%s; free some space: a state "
                        "takes about three times the size of a checkpoint.", run.state.step, error,
                        f", and {kept.name} is still there" if (kept := self._newest()) else "")
            return
        finally:
            self._last = time.monotonic()
        self._saved_step = run.state.step
        if run.processes.is_main:
            self._rotate(path)
            log.info("saved the state of step %d (%s)", run.state.step, path.name)
        run.state_saved(path)

    def _newest(self) -> Path | None:
        return next(iter(find_states(self.plan.folder, self.plan.name)), None)

    def _rotate(self, newest: Path) -> None:
        """Delete the oldest ones beyond `keep`; never the one just written, nor one of a later step."""
        limit = step_of(newest, self.plan.name) or 0
        older = [path for path in find_states(self.plan.folder, self.plan.name)
                 if (step_of(path, self.plan.name) or 0) < limit]
        for path in older[self.plan.keep - 1:]:
            remove_state(path)
