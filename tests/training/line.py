"""A model of two lines, and a run of the loop on it."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
import json
from typing import Any

import torch
from torch import Tensor, nn

from training.callbacks import AudioGap, Callback, LevelFigures, Run, RunState, StepReport, ValidationReport
from training.loop import Loop, LoopSettings
from training.passes import BatchLoss
from training.processes import Processes

DATA = [0.3, -1.2, 0.7, 2.0, -0.4, 0.9, 1.1, -0.6]


class Line:
    """Fits w to data by least squares; items are numbers."""

    works_after_step = True

    def __init__(self, data: Sequence[float], batch_size: int = 1) -> None:
        self.weight = nn.Parameter(torch.tensor([[0.5, -0.25], [0.1, 0.9]]))
        self.parameters = [self.weight]
        items = [torch.tensor([value, 1.0]) for value in data]
        self._batches = [items[i:i + batch_size] for i in range(0, len(items), batch_size)]
        self.batches_per_epoch = len(self._batches)
        self.seen: list[float] = []
        self.after = 0

    def epoch_length(self, step: int) -> int:
        return self.batches_per_epoch

    def batches(self, epoch: int, step: int, start: int) -> Generator[list[Tensor], None, None]:
        yield from self._batches[start:]

    def loss(self, batch: list[Tensor]) -> BatchLoss:
        self.seen += [float(item[0]) for item in batch]
        losses = (torch.stack(batch) @ self.weight).pow(2).sum(1)
        return BatchLoss(losses.sum(), losses.detach(), tuple(f"item {float(item[0]):g}" for item in batch))

    def after_step(self) -> None:
        self.after += 1


class Constant:
    """A schedule that leaves the rate alone."""

    def step(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass


def loop_of(job: Line, *callbacks: Callback, lr: float = 0.1, **settings: Any) -> Loop:
    """A loop that is ready to train `job` with plain gradient descent; `settings` are those of the loop."""
    optimizer = torch.optim.SGD(job.parameters, lr=lr)
    return Loop(job, optimizer=optimizer, schedule=Constant(), settings=LoopSettings(**settings),
                processes=Processes(), callbacks=callbacks)


def fit(job: Line, *callbacks: Callback, lr: float = 0.1, **settings: Any) -> Loop:
    """Train `job` to the end."""
    loop = loop_of(job, *callbacks, lr=lr, **settings)
    loop.run()
    return loop


def go_on(job: Line, *callbacks: Callback, state: RunState, memory: Mapping[str, Any], **settings: Any) -> Loop:
    """Train `job` from `state` to the end, each callback with what `memory` holds under its name."""
    loop = loop_of(job, *callbacks, **settings)
    loop.state, loop.is_resumed = replace(state), True
    for callback in callbacks:
        if callback.state_name:
            callback.recall(json.loads(json.dumps(memory[callback.state_name])))
    loop.run()
    return loop


class Saves(Callback):
    """Keeps, after each step, where the run stood and what the other callbacks remembered. Stands last."""

    def __init__(self, *others: Callback) -> None:
        self._others = others
        self.at: dict[int, tuple[RunState, dict[str, Any]]] = {}

    def on_step(self, run: Run, report: StepReport) -> None:
        self.at[report.step] = (replace(run.state), {one.state_name: one.remembered() for one in self._others})


class Measured(Callback):
    """Tells the run the held-out losses that it is given: one for the start, one after every step."""

    def __init__(self, *losses: float, gap: float | None = None, basis: str = "") -> None:
        self._losses, self._gap, self._basis = list(losses), gap, basis

    def on_start(self, run: Run) -> None:
        if not run.is_resumed:
            self._tell(run)

    def on_step(self, run: Run, report: StepReport) -> None:
        self._tell(run)

    def _tell(self, run: Run) -> None:
        step, loss = run.state.step, self._losses[run.state.step]
        audio = None if self._gap is None else AudioGap(1.0, 1.0 + self._gap * step, 1.0 + self._gap * step, None,
                                                        clips=1, shift_frames=5)
        levels = tuple(LevelFigures(sigma, sigma * loss, audio and audio.gap) for sigma in (0.5, 1.0))
        run.validated(ValidationReport(step, run.state.epoch, loss, 2, audio, "", 0.1, levels,
                                       self._basis))
