"""The last weights of a run beside their average, as NAME-raw.safetensors."""

from collections.abc import Callable
from pathlib import Path

from training.callbacks import Callback, Outcome, Run, RunState


class RawWeights(Callback):
    """Writes the weights as they were trained, where what is saved is an average of them."""

    def __init__(self, final: Path, write: Callable[[Path, RunState], None]) -> None:
        """`final` is the file of the average, whose name this one's begins with."""
        self.path = final.with_name(f"{final.stem}-raw{final.suffix}")
        self._write = write

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Write once, at the end of a finished run."""
        if outcome is Outcome.FINISHED:
            run.processes.from_first(lambda: self._write(self.path, run.state))
