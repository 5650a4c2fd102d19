"""The training loop: epochs, accumulation, clipping, steps and callbacks, for any model and any data."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
import math
from pathlib import Path
import signal
import time
from typing import Any, NoReturn, Protocol

import torch

from training.ahead import Ahead, EpochsAhead
from training.callbacks import Callback, Outcome, RunState, StepReport, ValidationReport, end_all
from training.guard import ExplodedLoss, Guard, NonFiniteLoss
from training.optimizers import current_rates, step_unless
from training.parallel import GradientBucket, StepTotals
from training.passes import BatchLoss, Job, Passes
from training.processes import LostProcess, Processes
from training.signals import Interrupted, StopWish


class Schedule(Protocol):
    """A learning-rate schedule: `step` once after every optimiser step."""

    def step(self) -> None:
        """Set the rates of the next step."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Stand there again."""


@dataclass(frozen=True)
class LoopSettings:
    """How long, and in which portions."""

    steps: int | None = 1600
    """Optimiser steps; None where `epochs` rules."""
    epochs: int | None = None
    accumulation: int = 1
    """Batches of each process in one optimiser step; the last step of an epoch may have fewer."""
    max_grad_norm: float = 0.0
    """Limit of the gradient's norm; 0 for none."""
    cuts: tuple[int, ...] = ()
    """Steps after which an epoch ends early and a new one begins, because other data come (phases)."""

    def steps_per_epoch(self, batches: int) -> int:
        """Optimiser steps in an epoch of `batches` batches."""
        return math.ceil(batches / self.accumulation)

    def totals(self, batches: int) -> tuple[int, int]:
        """(optimiser steps, epochs begun) of the whole run."""
        per_epoch = self.steps_per_epoch(batches)
        if self.epochs is not None:
            return self.epochs * per_epoch, self.epochs
        assert self.steps is not None
        return self.steps, math.ceil(self.steps / per_epoch)


class Loop:
    """One run. Build it, call `run`; `state` tells where it stands."""

    def __init__(self, job: Job, *, optimizer: torch.optim.Optimizer, schedule: Schedule, settings: LoopSettings,
                 processes: Processes, callbacks: Sequence[Callback] = (), guard: Guard | None = None) -> None:
        self.job, self.optimizer, self.schedule = job, optimizer, schedule
        self.settings, self.processes, self.callbacks = settings, processes, list(callbacks)
        self.state = RunState()
        self.total_steps, self.total_epochs = settings.totals(job.batches_per_epoch)
        self.is_between_steps, self.is_resumed = True, False
        self.stop_reason = ""
        self.error: BaseException | None = None
        self.is_state_due: Callable[[], bool] = lambda: False
        self.wish = StopWish()
        self._is_asked_to_stop = False
        self.guard = guard or Guard()
        self._bucket = GradientBucket(job.parameters, processes)
        self._epochs: EpochsAhead[Any] = EpochsAhead(job.batches)
        self._passes = Passes(job, self._bucket, settings.accumulation)

    @property
    def is_ending(self) -> bool:
        """Whether no further step comes."""
        return bool(self.stop_reason) or self.state.step >= self.total_steps

    def run(self) -> RunState:
        """Train to the end. Errors, and `training.signals.Interrupted`, come after every callback has been told."""
        with self.wish.heeded():
            try:
                for callback in self.callbacks:
                    callback.on_start(self)
                with closing(self._epochs):  # whatever ends the run, no thread goes on reading
                    while not self.is_ending:
                        self._epoch()
                        if self._is_stopping and not self.is_ending:
                            self.wish.obey()
            except KeyboardInterrupt as error:
                self.error = error
                end_all(self.callbacks, self, Outcome.INTERRUPTED)
                if not self.wish.is_urgent:  # else the others may be anywhere
                    # A launcher ends the others as soon as one has ended: none may, before the last file is written.
                    with suppress(LostProcess):
                        self.processes.wait()
                raise
            except BaseException as error:
                self.error = error
                end_all(self.callbacks, self, Outcome.FAILED)
                raise
            end_all(self.callbacks, self, Outcome.FINISHED)
        return self.state

    def stop(self, reason: str) -> None:
        """End the run after this step, as if it were the last."""
        self.stop_reason = self.stop_reason or reason

    def interruptible(self) -> AbstractContextManager[None]:
        """A look at the run that a signal may end at once, with `Interrupted`."""
        return self.wish.interruptible()

    def stop_together(self, numbers: Iterable[int | None]) -> None:
        """Raise `Interrupted` on every process where a signal has ended the look of one; `numbers` of all processes."""
        if stopped := [number for number in numbers if number is not None]:
            self.wish.number = self.wish.number or stopped[0]
            raise Interrupted(self.wish.number)

    def saved(self, path: Path) -> None:
        """Tell every callback that a checkpoint is on disk."""
        for callback in self.callbacks:
            callback.on_save(self, path)

    def state_saved(self, path: Path) -> None:
        """Tell every callback that a whole state is on disk."""
        for callback in self.callbacks:
            callback.on_state(self, path)

    def validated(self, report: ValidationReport) -> None:
        """Tell every callback what was measured on held-out clips."""
        for callback in self.callbacks:
            callback.on_validation(self, report)

    def _epoch(self) -> None:
        state = self.state
        if not state.is_in_epoch:
            state.epoch, state.epoch_start, state.batches_in_epoch = state.epoch + 1, state.step, 0
            state.is_in_epoch = True
        length = self.job.epoch_length(state.epoch_start)
        started = time.perf_counter()
        batches = self._epochs.epoch(state.epoch, state.epoch_start, state.batches_in_epoch)
        while not self._is_cut and batches.has_next():
            report = self._step(batches, started)
            for callback in self.callbacks:
                callback.on_step(self, report)
            if self.is_ending or self._is_stopping or self._is_cut:
                break
            started = time.perf_counter()
        if state.batches_in_epoch >= length or self._is_cut:
            for callback in self.callbacks:
                callback.on_epoch(self)
            state.is_in_epoch = False

    @property
    def _is_stopping(self) -> bool:
        """Whether the run ends here as it was asked to; of several processes only where all of them know it."""
        return bool(self.wish) if self.processes.count == 1 else self._is_asked_to_stop

    @property
    def _is_cut(self) -> bool:
        """Whether the epoch ends here before all its batches are seen."""
        return self.state.step in self.settings.cuts and self.state.step > self.state.epoch_start

    def _look_ahead(self, batches: Ahead[Any]) -> Ahead[Any] | None:
        """Fetch what the next step begins with, and give its epoch's batches; None where no step is expected."""
        step = self.state.step + 1
        if step >= self.total_steps or self.wish:
            return None
        if step in self.settings.cuts or not batches.look_ahead():
            batches = self._epochs.epoch(self.state.epoch + 1, step)
            batches.look_ahead()
        return batches

    def _obey(self) -> None:
        """Before a batch: end the run here, where it was asked to and no other process must know."""
        if self.processes.count == 1:
            self.wish.obey()

    def _step(self, batches: Ahead[Any], started: float) -> StepReport:
        seen, used = self._passes.of_step(batches, self._obey)
        if self.processes.is_main and self.is_state_due():
            self._bucket.ask_for_state()
        if self.wish:
            self._bucket.ask_to_stop()
        told = [part for part in seen if part.sigmas]
        queued = self._bucket.queue_reduce(self.settings.max_grad_norm, limits=self.guard.limits(),
                                           also=[part.per_sample for part in told])
        upcoming = self._look_ahead(batches)
        for callback in self.callbacks:
            callback.while_computing(self)
        rates = current_rates(self.optimizer)
        self.is_between_steps = False
        is_taken = step_unless(self.optimizer, queued.refused)
        self.is_between_steps = not is_taken
        if is_taken and upcoming is not None and not self.job.works_after_step:
            self._passes.begin(upcoming)
        totals = queued.read()
        if totals.is_refused:
            self.is_between_steps = True
            self._refuse(totals, seen)
        self.guard.count(totals.loss, totals.grad_norm)
        self.is_between_steps = False
        if not is_taken:
            self.optimizer.step()
        self.schedule.step()
        self.job.after_step()
        self.state.batches_in_epoch += used
        self.state.count(totals.loss, totals.samples)
        self.is_between_steps = True
        self._is_asked_to_stop = totals.is_to_stop
        if totals.is_to_stop and not self.wish:
            self.wish.number = signal.SIGTERM
        return StepReport(step=self.state.step, epoch=self.state.epoch, loss=totals.loss,
                          average_loss=self.state.average_loss, grad_norm=totals.grad_norm, learning_rates=rates,
                          seconds=time.perf_counter() - started, samples=totals.samples,
                          drawn=tuple(zip([sigma for part in told for sigma in part.sigmas], totals.also, strict=True)),
                          is_state_due=totals.is_state_due)

    def _refuse(self, totals: StepTotals, seen: Sequence[BatchLoss]) -> NoReturn:
        """Tell why the step does not touch the weights, naming its items."""
        is_finite = math.isfinite(totals.loss) and math.isfinite(totals.grad_norm)
        too_large = self.guard.finds(totals.loss, totals.grad_norm) if is_finite else ""
        losses = [(name, value) for part in seen
                  for name, value in zip(part.names, part.per_sample.tolist(), strict=True)]
        hints = "" if too_large else "".join(f" ({hint})" for part in seen if (hint := part.hint()))
        told = self.processes.gather((losses, hints))
        everywhere = [pair for one, _ in told for pair in one]
        step = self.state.step + 1
        if too_large:
            items = ", ".join(f"{name} (loss {value:.4g})" for name, value in everywhere)
            raise ExplodedLoss(f"step {step}: {too_large}; the weights were not touched. Items of the step: {items}. "
                               "Look at these files and their caches; lower --learning_rate, or set --max_grad_norm. "
                               "--explosion_factor sets the limit, 0 takes it away.")
        bad = [f"{name} (loss {value})" for name, value in everywhere if not math.isfinite(value)]
        what = "loss" if bad else "gradient"
        items = ", ".join(bad or [f"{name} (loss {value:.4g})" for name, value in everywhere])
        raise NonFiniteLoss(
            f"step {step}: the {what} is not finite; the weights were not touched. Items of the step: {items}. Look at "
            "these files and their caches; lower --learning_rate if the loss had been growing; fp16 weights overflow "
            "where bf16 does not." + "".join(hints for _, hints in told))
