"""What is trained, and the forward and backward passes of a step's batches, of which the first may be begun early."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
import traceback
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from training.ahead import Ahead
from training.parallel import GradientBucket


@dataclass(frozen=True)
class BatchLoss:
    """Result of one forward pass."""

    total: Tensor
    """Sum of the samples' weighted losses, a scalar with its graph."""
    per_sample: Tensor
    """`B` losses, detached."""
    names: tuple[str, ...]
    """The samples, as a user knows them."""
    sigmas: tuple[float, ...] = ()
    """Noise level of each sample, drawn on the CPU; empty where the job has none to tell."""
    hint: Callable[[], str] = str
    """Asked where a loss is no number: why, in a sentence, where the job knows."""


class Job(Protocol):
    """What is trained: it knows the model and the data, the loop does not."""

    parameters: Sequence[torch.nn.Parameter]
    batches_per_epoch: int
    """Of the first epoch; the same on every process."""

    def epoch_length(self, step: int) -> int:
        """Batches of an epoch that begins after `step` optimiser steps; the same on every process."""

    def batches(self, epoch: int, step: int, start: int) -> Generator[Any, None, None]:
        """This process's batches of `epoch` (from 1), beginning with number `start`; None where it has none.

        The epoch began after `step` optimiser steps: phases hang on that, and not on the step of batch `start`.

        They are asked for ahead of their turn, so that the host's work on one (reading, draws, its way to the device)
        is done while the device still computes; an epoch's first one while the last step of the epoch before is
        computed, and so before what callbacks do between the two. So none of it may touch the weights or torch's global
        generators, or hang on a state of the job, and nothing is done before the first batch is asked for.
        """

    def loss(self, batch: Any) -> BatchLoss:
        """Forward pass of one batch that is not None."""

    @property
    def works_after_step(self) -> bool:
        """Whether `after_step` has anything to do.

        Where not, the next step's first pass may be queued before this step's figures are known.
        """

    def after_step(self) -> None:
        """Work on the weights after an optimiser step (norm limits)."""


class _Begun(NamedTuple):
    """A batch whose passes are queued before its step's turn."""

    batch: Any
    loss: BatchLoss | Exception
    """Or what was raised."""


class Passes:
    """What a step learns: losses, and gradients in the bucket."""

    def __init__(self, job: Job, bucket: GradientBucket, accumulation: int) -> None:
        self._job, self._bucket, self._accumulation = job, bucket, accumulation
        self._begun: _Begun | None = None

    def begin(self, batches: Ahead[Any]) -> None:
        """Queue the passes of the next step's first batch, where it is there; from now on gradients are that step's.

        So the device has work while the host waits for the figures of the step before and tells them: without, it
        stands still at every step's beginning, for as long as the host needs to queue a forward pass. Weights must be
        what the next step begins with, but for a step that the device left out, after which there is no next one. An
        error is kept for `of_step`.
        """
        batch = batches.waiting
        if batch is None:
            return
        self._bucket.clear()
        try:
            self._begun = _Begun(batch, self._learn(batch))
        except Exception as error:  # noqa: BLE001 - raised in its own step, behind the report of the one before
            # Its frames hold what the pass kept for the backward one: looks at the run would have no room beside it.
            traceback.clear_frames(error.__traceback__)
            self._begun = _Begun(batch, error)

    def of_step(self, batches: Ahead[Any], before_each: Callable[[], None]) -> tuple[list[BatchLoss], int]:
        """Losses of a step's batches, and how many it used up; `before_each` of them may break it off."""
        begun, self._begun = self._begun, None
        if begun is None:
            self._bucket.clear()
        losses: list[BatchLoss] = []
        used = 0
        for batch in batches.take(self._accumulation):
            used += 1
            before_each()
            if begun is not None:
                assert begun.batch is batch, "another batch was begun"
                if isinstance(begun.loss, Exception):
                    raise begun.loss
                losses.append(begun.loss)
                begun = None
            elif batch is not None:
                losses.append(self._learn(batch))
        return losses, used

    def _learn(self, batch: Any) -> BatchLoss:
        result = self._job.loss(batch)
        result.total.backward()  # type: ignore[no-untyped-call]
        self._bucket.add_loss(result.total, len(result.names))
        return replace(result, total=result.total.detach())
