"""What a user sees of a running training: a progress bar, or plain lines, and a log of every step."""

from collections.abc import Mapping
from datetime import UTC, datetime
import errno
import json
import math
import os
from pathlib import Path
import sys
import time
from typing import Any, BinaryIO, ClassVar

from common.logs import get_logger
from common.progress import progress
from training.callbacks import Callback, Onlooker, Outcome, Run, StepReport, ValidationReport
from training.telling.memory_report import Smi, device_memory

log = get_logger(__name__)


class ProgressLine(Callback):
    """A bar on a terminal, plain lines elsewhere: loss, averages, learning rate, seconds a step, memory of a GPU.

    `avg` is the mean of the last 100 steps. `ema` begins with the first loss and is then 0.98 ema + 0.02 loss.
    """

    SECONDS_BETWEEN_LINES = 15.0
    EMA_DECAY = 0.98
    BAR = "{n_fmt}/{total_fmt} {bar:8} {elapsed}<{remaining}{postfix}"
    """Short, so that the figures have room within the 100 columns."""

    state_name: ClassVar[str] = "progress"

    def __init__(self, smi_every: int = 0) -> None:
        """`smi_every`: steps between two looks at nvidia-smi; 0 for none."""
        self._smi_every = smi_every
        self._smi: Smi | None = None
        self._bar: Any = None
        self._last_line = 0.0
        self._seen = 0
        self._seconds = 0.0
        self._ema: float | None = None

    def remembered(self) -> dict[str, Any]:
        """The average that goes on."""
        return {"ema": self._ema}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Take it up."""
        self._ema = values["ema"]

    def on_start(self, run: Run) -> None:
        """Open the bar at the step where the run begins."""
        if self._smi_every and run.processes.is_main:
            self._smi = Smi.of(run.processes.device)
        if sys.stderr.isatty():
            self._bar = progress(total=run.total_steps, initial=run.state.step, unit="step", form=self.BAR)

    def on_step(self, run: Run, report: StepReport) -> None:
        """Show the step's figures."""
        self._seen += 1
        # The first step pays for warm-up and compilation; it would spoil the rate for long.
        share = 1.0 if self._seen <= 2 else 0.1
        self._seconds += share * (report.seconds - self._seconds)
        self._ema = report.loss if self._ema is None else (
            self.EMA_DECAY * self._ema + (1 - self.EMA_DECAY) * report.loss)
        rate = next(iter(report.learning_rates.values()), 0.0)
        if self._bar is not None:
            memory = device_memory(run.processes.device)
            self._bar.set_postfix_str(f"loss {report.loss:.4f} avg {report.average_loss:.4f} lr {rate:.1e} "
                                      f"{self._seconds:.3g} s/step" + (f" {memory.short}" if memory else ""),
                                      refresh=False)
            self._bar.update()
        elif run.processes.is_main and self._is_due(run, report.step):
            left = self._seconds * (run.total_steps - report.step)
            log.info("step %d/%d epoch %d/%d loss %.4f avg %.4f ema %.4f lr %.2e %.3g s/step, %s left", report.step,
                     run.total_steps, report.epoch, run.total_epochs, report.loss, report.average_loss, self._ema, rate,
                     self._seconds, duration(left))
            if (memory := device_memory(run.processes.device)) is not None:
                log.info("%s", memory.words)
        if self._smi is not None and report.step % self._smi_every == 0 and (line := self._smi.line()):
            self._say(line)

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.clear()
        log.info("%s", text)

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
            self._say(f"saved {path}")

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """Say what was measured, in all and by noise level."""
        if run.processes.is_main:
            self._say(f"step {report.step}: {report.words}" + (f"\n{report.table}" if report.by_sigma else ""))

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


class StepLog(Onlooker):
    """``metrics.jsonl`` in the run folder: a line when a run starts, and one for every optimiser step.

    Lines that a full disk has no room for wait until there is some; no state is saved as long as they do.
    A saved state remembers how long the file was: stand before the callback that saves it, so that the line of the
    step is in. A run that goes on from it cuts off what came later and is done again.
    """

    state_name: ClassVar[str] = "metrics"

    def __init__(self, folder: Path, run_name: str, *, replaces_lost: bool = False) -> None:
        """`replaces_lost`: lines of a run of this name that was killed before it had a state are taken back."""
        super().__init__()
        self.path = folder / "metrics.jsonl"
        self._name = run_name
        self._replaces_lost = replaces_lost
        self._file: BinaryIO | None = None
        self._waiting = b""
        self._length: int | None = None

    def remembered(self) -> dict[str, Any]:
        """Length of the file in bytes, all of which are on disk."""
        if self._waiting:
            raise OSError(errno.ENOSPC, "the figures of the last steps are not on the disk", str(self.path))
        if self._file is not None and not self._file.closed:
            os.fsync(self._file.fileno())
        return {"bytes": self.path.stat().st_size if self.path.is_file() else 0}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Have `on_start` cut the file to that length."""
        self._length = values["bytes"]

    def on_start(self, run: Run) -> None:
        """Append the opening line; lines of earlier runs in the folder stay."""
        if run.processes.is_main:
            if self._length is not None:
                _cut(self.path, self._length)
            elif self._replaces_lost and (lost := _lost_run(self.path, self._name)) is not None:
                log.info("%s: an earlier start was killed before it had a state; its lines are taken back", self.path)
                os.truncate(self.path, lost)
            # Without a buffer, so that what did not fit is known to the byte. Closed in on_end.
            self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            if _is_torn(self.path):
                self._waiting = b"\n"
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
        levels = [{"sigma": one.sigma, "held_out_loss": one.loss, "audio_gap": one.gap} for one in report.by_sigma]
        self._line(event="validation", step=report.step, epoch=report.epoch, held_out_loss=report.loss,
                   clips=report.clips, **{"audio_gap": None, "null_gap": None, **sounds}, by_sigma=levels,
                   note=report.note, seconds=round(report.seconds, 4))

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Append how the run ended."""
        reason = {"reason": run.stop_reason} if outcome is Outcome.FINISHED and run.stop_reason else {}
        self._line(event=outcome.value, run=self._name, step=run.state.step, **reason)
        if self._file is not None:
            self._file.close()

    def _line(self, **values: Any) -> None:
        if self._file is None:
            return
        self._waiting += json.dumps(_finite(values), allow_nan=False).encode() + b"\n"
        with self.writing(self.path):
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting):]


def _lost_run(path: Path, name: str) -> int | None:
    """Where the last run's lines begin, if it began at step 1 and never said how it ended; None where it did."""
    begins, place = None, 0
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        try:
            values = json.loads(line)
        except ValueError:
            values = {}
        if values.get("event") == "start":
            begins = place if values.get("run") == name and values.get("first_step") == 1 else None
        elif values.get("event") in {outcome.value for outcome in Outcome}:
            begins = None
        place += len(line)
    return begins


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut(path: Path, length: int) -> None:
    """Cut the log to the bytes that a saved state knew; one line tells where it is not the file that it knew."""
    found = path.stat().st_size if path.is_file() else 0
    if found == length:
        return
    if found < length:
        log.warning("%s holds %d bytes, and the saved state knew %d: figures of earlier steps are missing in it", path,
                    found, length)
        return
    with open(path, "rb") as file:
        file.seek(max(0, length - 1))
        is_between_lines = length == 0 or file.read(1) == b"\n"
        later = file.read().decode("utf-8", "replace").splitlines()
    if not is_between_lines or any(_begins_another(line) for line in later):
        log.warning("%s is not the file that the saved state knew, or another run has written to it: nothing is cut",
                    path)
        return
    os.truncate(path, length)
    log.info("%s: cut to the step that the run goes on from (%d later lines, which are done again)", path, len(later))


def _begins_another(line: str) -> bool:
    try:
        values = json.loads(line)
    except ValueError:
        return False
    return values.get("event") == "start" and values.get("first_step") == 1


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
