"""The training loop: epochs, accumulation, clipping, steps and callbacks, for any model and any data."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
import math
from pathlib import Path
import time
from typing import Any, Protocol

import torch
from torch import Tensor

from common.errors import UserError
from training.callbacks import Callback, Outcome, RunState, StepReport, ValidationReport, end_all
from training.optimizers import current_rates
from training.parallel import GradientBucket, Processes, StepTotals


class NonFiniteLoss(UserError):
    """A loss or gradient is NaN or infinite; the weights are as they were before the step."""


@dataclass(frozen=True)
class BatchLoss:
    """Result of one forward pass."""

    total: Tensor
    """Sum of the samples' weighted losses, a scalar with its graph."""
    per_sample: Tensor
    """`B` losses, detached."""
    names: tuple[str, ...]
    """The samples, as a user knows them."""


class Job(Protocol):
    """What is trained: it knows the model and the data, the loop does not."""

    parameters: Sequence[torch.nn.Parameter]
    batches_per_epoch: int
    """The same on every process."""

    def batches(self, epoch: int, start: int) -> Generator[Any, None, None]:
        """This process's batches of `epoch` (from 1), beginning with number `start`; None where it has none."""

    def loss(self, batch: Any) -> BatchLoss:
        """Forward pass of one batch that is not None."""

    def after_step(self) -> None:
        """Work on the weights after an optimiser step (norm limits)."""


class Schedule(Protocol):
    """A learning-rate schedule: `step` once after every optimiser step."""

    def step(self) -> None:
        """Set the rates of the next step."""


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
                 processes: Processes, callbacks: Sequence[Callback] = (), state: RunState | None = None) -> None:
        self.job, self.optimizer, self.schedule = job, optimizer, schedule
        self.settings, self.processes, self.callbacks = settings, processes, list(callbacks)
        self.state = state or RunState()
        self.total_steps, self.total_epochs = settings.totals(job.batches_per_epoch)
        self._bucket = GradientBucket(job.parameters, processes)

    def run(self) -> RunState:
        """Train to the end. Ctrl-C and errors are passed on after every callback has been told."""
        try:
            for callback in self.callbacks:
                callback.on_start(self)
            while self.state.step < self.total_steps:
                self._epoch()
        except KeyboardInterrupt:
            end_all(self.callbacks, self, Outcome.INTERRUPTED)
            raise
        except BaseException:
            end_all(self.callbacks, self, Outcome.FAILED)
            raise
        end_all(self.callbacks, self, Outcome.FINISHED)
        return self.state

    def saved(self, path: Path) -> None:
        """Tell every callback that a checkpoint is on disk."""
        for callback in self.callbacks:
            callback.on_save(self, path)

    def validated(self, report: ValidationReport) -> None:
        """Tell every callback what was measured on held-out clips."""
        for callback in self.callbacks:
            callback.on_validation(self, report)

    def _epoch(self) -> None:
        state = self.state
        if state.batches_in_epoch == 0:
            state.epoch += 1
        started = time.perf_counter()
        # Closing ends the threads that read ahead, also where the run stops in the middle of an epoch.
        with closing(self.job.batches(state.epoch, state.batches_in_epoch)) as batches:
            for portion in _portions(batches, self.settings.accumulation):
                report = self._step(portion, started)
                for callback in self.callbacks:
                    callback.on_step(self, report)
                if state.step >= self.total_steps:
                    break
                started = time.perf_counter()
        if state.batches_in_epoch >= self.job.batches_per_epoch:
            state.batches_in_epoch = 0
            for callback in self.callbacks:
                callback.on_epoch(self)

    def _step(self, portion: list[Any], started: float) -> StepReport:
        self._bucket.clear()
        seen: list[BatchLoss] = []
        for batch in portion:
            if batch is None:
                continue
            result = self.job.loss(batch)
            result.total.backward()  # type: ignore[no-untyped-call]
            self._bucket.add_loss(result.total, len(result.names))
            seen.append(BatchLoss(result.total.detach(), result.per_sample, result.names))
        totals = self._bucket.reduce(self.settings.max_grad_norm)
        self._refuse_non_finite(totals, seen)
        rates = current_rates(self.optimizer)
        self.optimizer.step()
        self.schedule.step()
        self.job.after_step()
        self.state.batches_in_epoch += len(portion)
        self.state.count(totals.loss, totals.samples)
        return StepReport(step=self.state.step, epoch=self.state.epoch, loss=totals.loss,
                          average_loss=self.state.average_loss, grad_norm=totals.grad_norm, learning_rates=rates,
                          seconds=time.perf_counter() - started, samples=totals.samples)

    def _refuse_non_finite(self, totals: StepTotals, seen: Sequence[BatchLoss]) -> None:
        if math.isfinite(totals.loss) and math.isfinite(totals.grad_norm):
            return
        losses = [(name, value) for part in seen
                  for name, value in zip(part.names, part.per_sample.tolist(), strict=True)]
        everywhere = [pair for one in self.processes.gather(losses) for pair in one]
        bad = [f"{name} (loss {value})" for name, value in everywhere if not math.isfinite(value)]
        what = "loss" if bad else "gradient"
        items = bad or [f"{name} (loss {value:.4g})" for name, value in everywhere]
        raise NonFiniteLoss(
            f"step {self.state.step + 1}: the {what} is not finite; the weights were not touched. Items of the step: "
            f"{', '.join(items)}. Look at these files and their caches; lower --learning_rate if the loss had been "
            "growing; fp16 weights overflow where bf16 does not.")


def _portions(batches: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` batches, the last one possibly shorter."""
    portion: list[Any] = []
    for batch in batches:
        portion.append(batch)
        if len(portion) == size:
            yield portion
            portion = []
    if portion:
        yield portion
