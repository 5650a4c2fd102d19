"""Points of a run where something else than learning may happen, each a no-op."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol

from common.logs import get_logger
from training.processes import Processes

log = get_logger(__name__)


@dataclass
class RunState:
    """Where a run stands: what a later start needs to go on from here."""

    step: int = 0
    """Optimiser steps done."""
    epoch: int = 0
    """Epochs begun, from 1; 0 before the first."""
    is_in_epoch: bool = False
    """Whether the epoch has not been ended yet (its last batch may be used up all the same)."""
    epoch_start: int = 0
    """Optimiser steps that were done when the epoch began."""
    batches_in_epoch: int = 0
    """Batches of the current epoch that are used up."""
    samples: int = 0
    """Samples seen, over all processes."""
    recent_losses: list[float] = field(default_factory=list)

    WINDOW = 100
    """Steps that the moving average looks back."""

    @property
    def average_loss(self) -> float:
        """Mean loss of the last steps."""
        return sum(self.recent_losses) / max(1, len(self.recent_losses))

    def count(self, loss: float, samples: int) -> None:
        """Note one more optimiser step."""
        self.step += 1
        self.samples += samples
        self.recent_losses = [*self.recent_losses, loss][-self.WINDOW:]


@dataclass(frozen=True)
class StepReport:
    """Figures of one optimiser step, the same on every process."""

    step: int
    epoch: int
    loss: float
    average_loss: float
    grad_norm: float
    learning_rates: Mapping[str, float]
    """In effect for each named group of parameters."""
    seconds: float
    """Wall time from the callbacks of the step before to these: data included, and what of the next step was begun."""
    samples: int
    is_state_due: bool = False
    """Whether the first process wants the state saved now (by the clock, or because a file `save` asked for it)."""
    drawn: tuple[tuple[float, float], ...] = ()
    """(noise level, loss) of each sample of this process alone, where the job tells its noise levels."""


@dataclass(frozen=True)
class AudioGap:
    """Mean loss on the same frames of the same clips with different sounds: what the right one is worth."""

    right: float
    late: float
    """The sound `shift_frames` video frames later."""
    early: float
    silent: float | None
    """Without sound; None where the condition has no form for that."""
    clips: int
    shift_frames: int

    @property
    def gap(self) -> float:
        """By how much a shifted sound is worse than the right one; 0 for a network that does not hear."""
        return (self.late + self.early) / 2 - self.right

    @property
    def null_gap(self) -> float | None:
        """By how much no sound is worse than the right one."""
        return None if self.silent is None else self.silent - self.right


@dataclass(frozen=True)
class LevelFigures:
    """Figures of the held-out clips at one noise level."""

    sigma: float
    loss: float
    gap: float | None = None
    """Audio gap over the clips that can be compared."""


@dataclass(frozen=True)
class ValidationReport:
    """Figures of the held-out clips as the network is at `step`, the same on every process."""

    step: int
    epoch: int
    loss: float
    """Held-out loss: unweighted, at fixed noise and fixed noise levels."""
    clips: int
    audio: AudioGap | None
    """None where nothing hears, or no clip can be compared (`note` says why)."""
    note: str
    """Clips that are not in `audio`, and why."""
    seconds: float
    by_sigma: tuple[LevelFigures, ...] = ()
    """The same figures at each noise level, in the order of the settings."""
    basis: str = ""
    """What was measured, and how: figures of another basis cannot be compared with these."""

    @property
    def words(self) -> str:
        """The figures in one line."""
        parts = [f"held-out loss {self.loss:.4f}"]
        if self.audio is None:
            return ", ".join([*parts, f"no audio gap ({self.note})"] if self.note else parts)
        parts.append(f"audio gap {self.audio.gap:+.3g} (shifted ±{self.audio.shift_frames} frames)")
        if self.audio.null_gap is not None:
            parts.append(f"without sound {self.audio.null_gap:+.3g}")
        return ", ".join(parts) + (f" (not compared: {self.note})" if self.note else "")

    @property
    def table(self) -> str:
        """The figures by noise level: a line of levels, one of losses, one of gaps where there are any."""
        rows = [("noise level", [f"{one.sigma:g}" for one in self.by_sigma]),
                ("held-out loss", [f"{one.loss:.4f}" for one in self.by_sigma])]
        if any(one.gap is not None for one in self.by_sigma):
            rows.append(("audio gap", ["" if one.gap is None else f"{one.gap:+.3g}" for one in self.by_sigma]))
        return "\n".join(f"  {name:<13}" + "".join(f"{cell:>10}" for cell in cells) for name, cells in rows)


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "finished"
    """At its last step, or where a callback had it stop; `Run.stop_reason` tells which."""
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class Run(Protocol):
    """What a callback may know of the run; the loop gives itself."""

    state: RunState
    processes: Processes
    total_steps: int
    total_epochs: int
    is_between_steps: bool
    """False while a step is changing weights: what they are then must not be saved."""
    is_resumed: bool
    """Whether the run goes on from a saved state, which every callback has been given its part of."""
    stop_reason: str
    """Why the run ends before its last step; empty while it does not."""
    error: BaseException | None
    """What broke the run off, for `on_end`."""
    is_state_due: Callable[[], bool]
    """Asked of the first process in every step; its answer reaches all of them in the step's report."""

    @property
    def is_ending(self) -> bool:
        """Whether no further step comes."""

    def stop(self, reason: str) -> None:
        """End the run after this step, with its final files written. Call it on every process alike."""

    def interruptible(self) -> AbstractContextManager[None]:
        """Around this process's part of a long look (validation, previews): Ctrl-C and SIGTERM end it at once.

        Nothing inside may wait for another process. Catch `Interrupted`, and give its number to `stop_together`.
        """

    def stop_together(self, numbers: Iterable[int | None]) -> None:
        """Raise `Interrupted` on all processes, where one of `numbers`, theirs, is that of a signal."""

    def saved(self, path: Path) -> None:
        """Tell the other callbacks that a checkpoint is on disk."""

    def state_saved(self, path: Path) -> None:
        """Tell the other callbacks that a whole state is on disk."""

    def validated(self, report: ValidationReport) -> None:
        """Tell the other callbacks what was measured on held-out clips."""


class Callback:
    """Base class: override the points that are needed. Called on every process, in the order of the list."""

    state_name: ClassVar[str] = ""
    """Key of what the callback remembers in a saved state; empty where it remembers nothing."""

    def remembered(self) -> dict[str, Any]:
        """What a later start needs: plain values and tensors, in dicts and lists. The first process's is saved."""
        return {}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Take up what `remembered` gave; called before `on_start`, on every process."""

    def on_start(self, run: Run) -> None:
        """Before the first step."""

    def on_step(self, run: Run, report: StepReport) -> None:
        """After every optimiser step.

        The next step's first passes may be queued already: what is changed here of weights, modes or settings comes too
        late for them, and the gradients are theirs.
        """

    def while_computing(self, run: Run) -> None:
        """Once in every step, while the device still computes it: for work that nobody waits for, such as pictures.

        `run.state` is still that of the step before, and so are files and weights.
        """

    def on_epoch(self, run: Run) -> None:
        """After the last step of an epoch."""

    def on_save(self, run: Run, path: Path) -> None:
        """After a checkpoint was written whole."""

    def on_state(self, run: Run, path: Path) -> None:
        """After a state was written whole that the run can go on from."""

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """After held-out clips were measured."""

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Once, whatever ended the run."""


class Onlooker(Callback):
    """A callback whose files nothing is learnt from: one that cannot be written is told once and counted."""

    def __init__(self) -> None:
        self.failures = 0

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Around the writing of `path`: a full disk, or a file that another program holds, does not end the run."""
        try:
            yield
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("%s could not be written (%s); training goes on, and it is tried again", path, error)


def end_all(callbacks: Sequence[Callback], run: Run, outcome: Outcome) -> None:
    """Call `on_end` of every callback, the later ones also when an earlier one raises; the first error comes last.

    A finished run whose files cannot be written has failed for those that come after.
    """
    first: BaseException | None = None
    for callback in callbacks:
        try:
            callback.on_end(run, outcome)
        except BaseException as error:  # noqa: BLE001 - re-raised below, after the others had their turn
            first = first or error
            if outcome is Outcome.FINISHED and isinstance(error, Exception):
                outcome, run.error = Outcome.FAILED, error
    if first is not None:
        raise first
