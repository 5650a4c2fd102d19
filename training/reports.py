"""What a user sees of a running training: a progress bar, or plain lines, and a log of every step."""

from datetime import UTC, datetime
import json
import math
import os
from pathlib import Path
import sys
import time
from typing import IO, Any

from common.logs import get_logger
from common.progress import progress
from training.callbacks import Callback, Outcome, Run, StepReport, ValidationReport

log = get_logger(__name__)


class ProgressLine(Callback):
    """A bar on a terminal, plain lines elsewhere: loss, moving average, learning rate, seconds a step."""

    SECONDS_BETWEEN_LINES = 15.0

    def __init__(self) -> None:
        self._bar: Any = None
        self._last_line = 0.0
        self._seconds: float | None = None

    def on_start(self, run: Run) -> None:
        """Open the bar at the step where the run begins."""
        if sys.stderr.isatty():
            self._bar = progress(total=run.total_steps, initial=run.state.step, desc="training", unit="step")

    def on_step(self, run: Run, report: StepReport) -> None:
        """Show the step's figures."""
        # The first step pays for warm-up; it would spoil the rate for long.
        if self._seconds is None or report.step == 2:
            self._seconds = report.seconds
        else:
            self._seconds += 0.1 * (report.seconds - self._seconds)
        rate = next(iter(report.learning_rates.values()), 0.0)
        figures = (f"loss {report.loss:.4f} avg {report.average_loss:.4f} lr {rate:.2e} "
                   f"{self._seconds:.3g} s/step")
        if self._bar is not None:
            self._bar.set_postfix_str(figures, refresh=False)
            self._bar.update()
        elif run.processes.is_main and self._is_due(run, report.step):
            left = self._seconds * (run.total_steps - report.step)
            log.info("step %d/%d epoch %d/%d %s, %s left", report.step, run.total_steps, report.epoch,
                     run.total_epochs, figures, duration(left))

    def _is_due(self, run: Run, step: int) -> bool:
        now = time.monotonic()
        due = step in (1, run.total_steps) or now - self._last_line > self.SECONDS_BETWEEN_LINES
        due = due or step % max(1, run.total_steps // 10) == 0
        if due:
            self._last_line = now
        return due

    def on_save(self, run: Run, path: Path) -> None:
        """Say where the checkpoint is."""
        if run.processes.is_main:
            if self._bar is not None:
                self._bar.clear()
            log.info("saved %s", path)

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """Say what was measured."""
        if run.processes.is_main:
            if self._bar is not None:
                self._bar.clear()
            log.info("step %d: %s", report.step, report.words)

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


class StepLog(Callback):
    """``metrics.jsonl`` in the run folder: a line when a run starts, and one for every optimiser step."""

    def __init__(self, folder: Path, run_name: str) -> None:
        self.path = folder / "metrics.jsonl"
        self._name = run_name
        self._file: IO[str] | None = None

    def on_start(self, run: Run) -> None:
        """Append the opening line; lines of earlier runs in the folder stay."""
        if run.processes.is_main:
            self._file = open(self.path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed in on_end
            if _is_torn(self.path):
                self._file.write("\n")
            self._line(event="start", run=self._name, time=datetime.now(UTC).isoformat(timespec="seconds"),
                       first_step=run.state.step + 1, total_steps=run.total_steps)

    def on_step(self, run: Run, report: StepReport) -> None:
        """Append the step's figures."""
        self._line(step=report.step, epoch=report.epoch, loss=report.loss, loss_average=report.average_loss,
                   lr=dict(report.learning_rates), grad_norm=report.grad_norm, seconds=round(report.seconds, 4),
                   samples=report.samples)

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """Append the figures of the held-out clips; null stands for what could not be measured."""
        audio = report.audio
        sounds = {} if audio is None else {
            "audio_gap": audio.gap, "null_gap": audio.null_gap, "loss_right": audio.right, "loss_late": audio.late,
            "loss_early": audio.early, "loss_silent": audio.silent, "shift_frames": audio.shift_frames,
            "clips_compared": audio.clips}
        figures = {"held_out_loss": report.loss, "clips": report.clips, "audio_gap": None, "null_gap": None, **sounds}
        finite = {name: value if value is None or math.isfinite(value) else None for name, value in figures.items()}
        self._line(event="validation", step=report.step, epoch=report.epoch, **finite, note=report.note,
                   seconds=round(report.seconds, 4))

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Append how the run ended."""
        self._line(event=outcome.value, run=self._name, step=run.state.step)
        if self._file is not None:
            self._file.close()

    def _line(self, **values: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")


def _is_torn(path: Path) -> bool:
    """Whether the file's last line has no end: the run that wrote it was killed meanwhile."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
        return bool(size) and file.read(1) != b"\n"


def duration(seconds: float) -> str:
    """``1 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
