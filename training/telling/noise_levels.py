"""Which noise levels a run really drew, and how large the training loss was at them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import math
from pathlib import Path
from typing import Any, ClassVar

from training.callbacks import Onlooker, Outcome, Run, StepReport
from training.telling.timestep_plot import draw_drawn

PICTURE = "timesteps.png"
BINS = 50


@dataclass(frozen=True)
class LevelRow:
    """Samples between two noise levels."""

    low: float
    high: float
    count: int
    share: float
    expected: float
    """Share that the settings lead to."""
    loss: float | None
    """Mean training loss, weighted as training weights it; None without samples."""


def bin_of(sigma: float, bins: int = BINS) -> int:
    """Number of the bin that a noise level from 0 to 1 lies in; a level on an edge belongs to the bin above it."""
    # Levels are float32, up to 3e-8 off: 0.02 is a little less than 1/50 when it comes here.
    return min(int(sigma * bins + 2e-6), bins - 1)


class NoiseLevels(Onlooker):
    """Counts samples and losses by noise level, and draws them as ``timesteps.png`` beside the loss history.

    With several processes it counts the first one's samples, which are dealt out evenly.
    """

    state_name: ClassVar[str] = "noise_levels"

    def __init__(self, folder: Path, expected: Callable[[], Sequence[float]], *, title: str, every: int = 100) -> None:
        """`expected` gives the share of each of the `BINS` bins; `every`: steps between two pictures."""
        super().__init__()
        self.path, self.title, self.every = folder / PICTURE, title, every
        self.counts, self.sums = [0] * BINS, [0.0] * BINS
        self._expected = expected
        self._law: Sequence[float] | None = None
        self._is_due = False

    def remembered(self) -> dict[str, Any]:
        """Samples and summed losses of each bin."""
        return {"counts": list(self.counts), "sums": list(self.sums)}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Take both up."""
        self.counts, self.sums = list(values["counts"]), list(values["sums"])

    def on_step(self, run: Run, report: StepReport) -> None:
        """Count the step's samples."""
        for sigma, loss in report.drawn:
            self.counts[bin_of(sigma)] += 1
            self.sums[bin_of(sigma)] += loss
        self._is_due = self._is_due or report.step % self.every == 0

    def while_computing(self, run: Run) -> None:
        """Draw, where it is due, while the next step is computed."""
        if self._is_due:
            self._draw(run)

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Draw what was drawn, however the run ended."""
        self._draw(run)

    def rows(self, count: int = 10) -> list[LevelRow]:
        """The bins put together to `count` rows, for a table; nothing before the first sample."""
        total, law, size = sum(self.counts), self._shares(), BINS // count
        assert size * count == BINS, count
        rows = []
        for first in range(0, BINS if total else 0, size):
            part = slice(first, first + size)
            samples = sum(self.counts[part])
            rows.append(LevelRow(first / BINS, (first + size) / BINS, samples, samples / total, math.fsum(law[part]),
                                 math.fsum(self.sums[part]) / samples if samples else None))
        return rows

    def _shares(self) -> Sequence[float]:
        if self._law is None:
            self._law = self._expected()
        return self._law

    def _draw(self, run: Run) -> None:
        self._is_due = False
        if run.processes.is_main and any(self.counts):
            means = [total / count if count else None for total, count in zip(self.sums, self.counts, strict=True)]
            with self.writing(self.path):
                draw_drawn(self.counts, means, self._shares(), self.path, title=self.title)
