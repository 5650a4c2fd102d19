"""Forward and backward passes of a step's batches, the first of which may be queued behind the step before."""

from collections.abc import Callable
from dataclasses import replace
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

from training.ahead import Ahead
from training.parallel import GradientBucket

if TYPE_CHECKING:
    from training.loop import BatchLoss, Job


class _Begun(NamedTuple):
    """A batch whose passes are queued before its step's turn."""

    batch: Any
    loss: "BatchLoss | Exception"
    """Or what was raised."""


class Passes:
    """What a step learns: losses, and gradients in the bucket."""

    def __init__(self, job: "Job", bucket: GradientBucket, accumulation: int) -> None:
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

    def of_step(self, batches: Ahead[Any], before_each: Callable[[], None]) -> tuple[list["BatchLoss"], int]:
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

    def _learn(self, batch: Any) -> "BatchLoss":
        result = self._job.loss(batch)
        result.total.backward()  # type: ignore[no-untyped-call]
        self._bucket.add_loss(result.total, len(result.names))
        return replace(result, total=result.total.detach())
