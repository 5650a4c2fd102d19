"""A model of two lines, and a run of the loop on it."""

from collections.abc import Generator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from training.callbacks import Callback
from training.loop import BatchLoss, Loop, LoopSettings
from training.parallel import Processes

DATA = [0.3, -1.2, 0.7, 2.0, -0.4, 0.9, 1.1, -0.6]


class Line:
    """Fits w to data by least squares; items are numbers."""

    def __init__(self, data: Sequence[float], batch_size: int = 1) -> None:
        self.weight = nn.Parameter(torch.tensor([[0.5, -0.25], [0.1, 0.9]]))
        self.parameters = [self.weight]
        items = [torch.tensor([value, 1.0]) for value in data]
        self._batches = [items[i:i + batch_size] for i in range(0, len(items), batch_size)]
        self.batches_per_epoch = len(self._batches)
        self.seen: list[float] = []
        self.after = 0

    def begin_epoch(self, epoch: int, step: int) -> int:
        return self.batches_per_epoch

    def batches(self, epoch: int, start: int) -> Generator[list[Tensor], None, None]:
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


def fit(job: Line, *callbacks: Callback, lr: float = 0.1, **settings: Any) -> Loop:
    """Train `job` with plain gradient descent; `settings` are those of the loop."""
    optimizer = torch.optim.SGD(job.parameters, lr=lr)
    loop = Loop(job, optimizer=optimizer, schedule=Constant(), settings=LoopSettings(**settings),
                processes=Processes(), callbacks=callbacks)
    loop.run()
    return loop
