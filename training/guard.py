"""Whether a step blew up, judged by the steps before it."""

import math
import statistics

import numpy as np

from common.errors import UserError


class BrokenStep(UserError):
    """A step that must not be taken; the weights are as they were before it, on every process."""


class NonFiniteLoss(BrokenStep):
    """A loss or gradient is NaN or infinite."""


class ExplodedLoss(BrokenStep):
    """A loss or gradient is far out of what the run has seen."""


class Guard:
    """Tells a step that blew up from the steps before it.

    `factor` is how many times the median of the last steps a loss may be, and ten times as many a gradient's norm,
    whose spread over noise levels is wider. 0 lets everything pass that is finite. Nothing is judged before `SMALLEST`
    steps.
    """

    WINDOW, SMALLEST = 100, 20

    def __init__(self, factor: float = 0.0) -> None:
        self.factor = factor
        self.recent: list[tuple[float, float]] = []

    def limits(self) -> tuple[float, float]:
        """What the next step's loss and gradient norm must not be above, as float32 numbers, in which both are known.

        Infinite where nothing is judged.
        """
        if not self.factor or len(self.recent) < self.SMALLEST:
            return math.inf, math.inf
        loss, norm = self._usual()
        limits = (float(np.float32(limit)) or math.inf for limit in (self.factor * loss, 10 * self.factor * norm))
        return tuple(limits)  # type: ignore[return-value]

    def finds(self, loss: float, grad_norm: float) -> str:
        """What is too large, in words; empty where nothing is."""
        seen = zip(("loss", "gradient's norm"), (loss, grad_norm), self.limits(), strict=True)
        for place, (name, value, limit) in enumerate(seen):
            if value > limit:
                times = value / self._usual()[place]
                return f"the {name} is {value:.4g}, {times:.0f} times the median of the steps before it"
        return ""

    def count(self, loss: float, grad_norm: float) -> None:
        """A step was taken: the next ones are judged by it too."""
        self.recent = [*self.recent, (loss, grad_norm)][-self.WINDOW:]

    def _usual(self) -> list[float]:
        """Medians of the last steps' losses and norms."""
        return [statistics.median(column) for column in zip(*self.recent, strict=True)]
