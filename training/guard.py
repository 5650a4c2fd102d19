"""Whether a step blew up, judged by the steps before it."""

import statistics

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

    def finds(self, loss: float, grad_norm: float) -> str:
        """What is too large, in words; empty where nothing is, and the step then counts among those before."""
        if self.factor and len(self.recent) >= self.SMALLEST:
            usual = [statistics.median(column) for column in zip(*self.recent, strict=True)]
            limits = self.factor * usual[0], 10 * self.factor * usual[1]
            for name, value, limit, median in zip(("loss", "gradient's norm"), (loss, grad_norm), limits, usual,
                                                  strict=True):
                if limit and value > limit:
                    return f"the {name} is {value:.4g}, {value / median:.0f} times the median of the steps before it"
        self.recent = [*self.recent, (loss, grad_norm)][-self.WINDOW:]
        return ""
