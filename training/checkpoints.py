"""Checkpoints: kohya's names, when they are written, and which older ones go."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
import tempfile
from typing import Any, ClassVar

from common.errors import ConfigError
from common.logs import get_logger
from training.callbacks import Callback, Outcome, Run, RunState, StepReport

log = get_logger(__name__)


@dataclass(frozen=True)
class CheckpointPlan:
    """Where, under which name and how often."""

    folder: Path
    name: str
    every_steps: int | None = None
    every_epochs: int | None = None
    keep_steps: int | None = None
    """Step checkpoints older than this many steps are deleted."""
    keep_epochs: int | None = None
    """Number of epoch checkpoints that stay."""
    at_first: bool = False
    """Whether the untrained network is written too, as step 0; it always stays."""

    def at_step(self, step: int) -> Path:
        """``{name}-step{step:08d}.safetensors``"""
        return self.folder / f"{self.name}-step{step:08d}.safetensors"

    def at_epoch(self, epoch: int) -> Path:
        """``{name}-{epoch:06d}.safetensors``"""
        return self.folder / f"{self.name}-{epoch:06d}.safetensors"

    @property
    def final(self) -> Path:
        """``{name}.safetensors``"""
        return self.folder / f"{self.name}.safetensors"

    @property
    def best(self) -> Path:
        """``{name}-best.safetensors``"""
        return self.folder / f"{self.name}-best.safetensors"


class Checkpoints(Callback):
    """Writes checkpoints on the first process. `write(path, state)` must leave a whole file or none.

    One that cannot be written (a full disk) costs a warning, and none is deleted for it; the final file must be.
    """

    state_name: ClassVar[str] = "checkpoints"

    def __init__(self, plan: CheckpointPlan, write: Callable[[Path, RunState], None]) -> None:
        self.plan = plan
        self._write = write
        self._paths: list[Path] = []
        self._steps: dict[int, Path] = {}
        self._epochs: dict[int, Path] = {}
        self.failures = 0

    def remembered(self) -> dict[str, Any]:
        """Which ones are this run's own to delete."""
        return {"steps": [*self._steps], "epochs": [*self._epochs]}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Take them up."""
        self._steps = {step: self.plan.at_step(step) for step in values["steps"]}
        self._epochs = {epoch: self.plan.at_epoch(epoch) for epoch in values["epochs"]}
        self._paths = [*self._steps.values(), *self._epochs.values()]

    @property
    def kept(self) -> list[Path]:
        """Files of this run that are on disk, oldest first."""
        return [path for path in self._paths if path.exists()]

    def on_start(self, run: Run) -> None:
        """Write what the run starts from, where that was asked for and the run is at its beginning."""
        if self.plan.at_first and run.state.step == 0:
            self._save(run, self.plan.at_step(0))

    def on_step(self, run: Run, report: StepReport) -> None:
        """Write every `every_steps` steps."""
        due = bool(self.plan.every_steps) and report.step % (self.plan.every_steps or 1) == 0
        if due and self._is_saved(run, self.plan.at_step(report.step)):
            self._steps[report.step] = self.plan.at_step(report.step)
            if self.plan.keep_steps is not None:
                self._forget(self._steps, oldest_kept=report.step - self.plan.keep_steps, newest=report.step)

    def on_epoch(self, run: Run) -> None:
        """Write every `every_epochs` epochs; the last epoch is written once, as the final file."""
        epoch = run.state.epoch
        if not self.plan.every_epochs or epoch % self.plan.every_epochs or run.is_ending:
            return
        if not self._is_saved(run, self.plan.at_epoch(epoch)):
            return
        self._epochs[epoch] = self.plan.at_epoch(epoch)
        if self.plan.keep_epochs is not None:
            oldest = epoch - self.plan.every_epochs * (self.plan.keep_epochs - 1)
            self._forget(self._epochs, oldest_kept=oldest, newest=epoch)

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Write the final file, or say what an unfinished run leaves."""
        if outcome is Outcome.FINISHED:
            self._save(run, self.plan.final)
            return
        if not run.processes.is_main:
            return
        if kept := self.kept:
            log.warning("%s after step %d; kept: %s", outcome.value, run.state.step, ", ".join(map(str, kept)))
        else:
            log.warning("%s after step %d; no checkpoint was due before it, so nothing is kept "
                        "(--save_every_n_steps sets how often)", outcome.value, run.state.step)

    def _is_saved(self, run: Run, path: Path) -> bool:
        try:
            self._save(run, path)
        except OSError as error:
            self.failures += 1
            if run.processes.is_main:
                log.warning("%s could not be written (%s). Training goes on; free some space.", path, error)
            return False
        return True

    def _save(self, run: Run, path: Path) -> None:
        # Noted before it is there, because Ctrl-C may come between the rename and the next line.
        self._paths.append(path)
        run.processes.from_first(lambda: self._write(path, run.state))
        run.saved(path)

    def _forget(self, files: dict[int, Path], *, oldest_kept: int, newest: int) -> None:
        for count in [count for count in files if count < oldest_kept and count != newest]:
            path = files.pop(count)
            path.unlink(missing_ok=True)
            self._paths = [one for one in self._paths if one != path]


def check_writable(folder: Path) -> None:
    """Try to write in `folder`, or in the nearest folder above it that exists. ConfigError says why it cannot be."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing, prefix=".omnituner-") as probe:
            probe.write(b"x")
    except OSError as error:
        raise ConfigError(f"--output_dir {folder}: cannot write there ({error.strerror}). "
                          "Choose another folder.") from error
