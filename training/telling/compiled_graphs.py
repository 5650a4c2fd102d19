"""What compiling came to in a run: graphs by size, and those that were made when all should have been there."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from common.logs import get_logger
from training.callbacks import Callback, Outcome, Run
from wan.memory.graphs import GraphLog, Use

log = get_logger(__name__)

SETTLED = 2
"""Steps of a size in which graphs are made: in the second one some gradients are no longer the first ones."""


class GraphReport(Callback):
    """Counts the graphs of compiled blocks, step by step; warns of one that is made after a size's second step."""

    def __init__(self, graphs: GraphLog) -> None:
        self.graphs = graphs
        self.made: dict[Use, Counter[int]] = {}
        """{use: {step: graphs}}; of those made only to look, the step before."""
        self.late = 0
        """Graphs made for training after the second step of their size."""
        self._steps: Counter[Use] = Counter()
        self._has_warned = False

    def while_computing(self, run: Run) -> None:
        """Count what the step made: its passes are queued, and no pass of the next one is."""
        self._count(run)

    def _count(self, run: Run) -> None:
        """Graphs since the last call: for training those of the step that is computed, others of looks before it."""
        uses, made = self.graphs.take()
        for use in uses:
            if made[use]:
                self._note(use, made[use], run.state.step + use.is_training)
            self._steps[use] += 1

    def _note(self, use: Use, made: int, step: int) -> None:
        self.made.setdefault(use, Counter())[step] += made
        if use.is_training and self._steps[use] >= SETTLED:
            self.late += made
            if not self._has_warned:
                log.warning("step %d compiled the blocks for %s again, after %d steps of that size: each time costs "
                            "about a minute. The environment variable TORCH_LOGS=recompiles tells why; --compile off "
                            "does without.", step, use.words, self._steps[use])
            self._has_warned = True

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Count what the last looks made, and say what it came to."""
        self._count(run)
        if run.processes.is_main and (words := self.words):
            log.info("compiled blocks: %s", words)

    @property
    def breaks(self) -> int:
        """Parts of a block that could not be made one graph."""
        return len(self.graphs.failures)

    @property
    def words(self) -> str:
        """All of it in one line; empty where nothing was compiled."""
        if not self.made and not self.graphs.failures and not self.graphs.skipped:
            return ""
        return "; ".join(self._words())

    def _words(self) -> Iterator[str]:
        for use, steps in sorted(self.made.items(), reverse=True):
            yield f"{use.words}: {steps.total()} graphs in step {', '.join(map(str, sorted(steps)))}"
        yield f"made after the second step of a size: {self.late}"
        yield f"graph breaks: {self.breaks}"
        if self.graphs.skipped:
            yield f"run uncompiled because a condition acts in the attention: {self.graphs.skipped} blocks"

    @property
    def facts(self) -> dict[str, Any] | None:
        """The same for the run's record; None where nothing was compiled."""
        if not self.words:
            return None
        sizes = [{"samples": use.samples, "tokens": use.tokens, "for": "training" if use.is_training else "looking",
                  "graphs": steps.total(), "steps": sorted(steps)} for use, steps in sorted(self.made.items())]
        return {"sizes": sizes, "made_late": self.late, "breaks": self.breaks,
                "blocks_run_uncompiled": self.graphs.skipped}
