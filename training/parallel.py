"""Gradients in one flat bucket: summed over processes, divided by the samples of all of them, clipped."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import math

import torch
from torch import Tensor
import torch.distributed as dist

from training.processes import Processes, exchanging


@dataclass(frozen=True)
class StepTotals:
    """What one optimiser step saw over all processes."""

    loss: float
    """Mean over the samples of all processes and micro-batches."""
    samples: int
    grad_norm: float
    """Norm of the mean gradient, before clipping."""
    is_refused: bool = False
    """Whether the loss or the gradient is no number, or above its limit: the same on every process."""
    is_to_stop: bool = False
    """Whether any process was asked to stop."""
    is_state_due: bool = False
    """Whether any process wants the state saved after this step."""
    also: tuple[float, ...] = ()
    """Numbers of this process that were read in the same wait."""


class QueuedTotals:
    """`StepTotals` on their way from the device; `read` is a step's only wait for it.

    Whatever the host does between the two is done while the device still computes.
    """

    def __init__(self, numbers: Tensor) -> None:
        """`numbers`: state wish, stop wish, loss, samples, gradient norm, refusal, then what else was to be read."""
        self._numbers, self._arrived = numbers, None
        self.refused = numbers[5]
        """1 on the device where the step must not be taken, else 0."""
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.current_stream(numbers.device).record_event()

    def read(self) -> StepTotals:
        """Wait for them."""
        if self._arrived is not None:
            self._arrived.synchronize()
        state, stop, loss, count, size, refused, *more = self._numbers.tolist()
        return StepTotals(loss=loss, samples=int(count), grad_norm=size, is_refused=refused > 0, is_to_stop=stop > 0,
                          is_state_due=state > 0, also=tuple(more))


class GradientBucket:
    """The gradients of all trained parameters as views of one flat tensor.

    Each process adds the gradients of its samples' *summed* losses; `reduce` sums over the processes and divides by the
    number of samples of all of them. So k processes with batch b, or k micro-batches of b, give the gradient of one
    batch of k*b, also where the last batch of a bucket is short or a process has none.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], processes: Processes) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        assert self.parameters, "nothing to train"
        dtypes = {parameter.dtype for parameter in self.parameters}
        assert dtypes == {torch.float32}, f"trained parameters must be float32, found {dtypes}"
        self.processes = processes
        lengths = [_aligned(parameter.numel()) for parameter in self.parameters]
        # The last places carry two wishes, the summed loss and the samples, so that one collective is enough.
        self._flat = torch.zeros(sum(lengths) + 4, dtype=torch.float32, device=self.parameters[0].device)
        start = 0
        for parameter, length in zip(self.parameters, lengths, strict=True):
            parameter.grad = self._flat[start:start + parameter.numel()].view_as(parameter)
            start += length

    def clear(self) -> None:
        """Set all gradients and totals to zero, in place."""
        self._flat.zero_()

    def add_loss(self, total: Tensor, samples: int) -> None:
        """Count a micro-batch: `total` is the sum of its samples' losses (a scalar on the device)."""
        self._flat[-2] += total.detach().to(self._flat.dtype)
        self._flat[-1] += samples

    def ask_to_stop(self) -> None:
        """Have `reduce` tell every process to stop after this step."""
        self._flat[-3] = 1

    def ask_for_state(self) -> None:
        """Have `reduce` tell every process to save the state after this step."""
        self._flat[-4] = 1

    def reduce(self, max_grad_norm: float = 0.0, *, also: Sequence[Tensor] = ()) -> StepTotals:
        """`queue_reduce`, and wait for what it tells."""
        return self.queue_reduce(max_grad_norm, also=also).read()

    def queue_reduce(self, max_grad_norm: float = 0.0, *, limits: tuple[float, float] = (math.inf, math.inf),
                     also: Sequence[Tensor] = ()) -> QueuedTotals:
        """Sum over processes, divide by the samples, clip to `max_grad_norm` (0: not), and report.

        A step is refused whose loss or gradient norm is no number or above its limit. `also` are vectors of this
        process that are read with the report, so that they cost no wait of their own.
        """
        if self.processes.count > 1:
            with exchanging():
                dist.all_reduce(self._flat)
        samples = self._flat[-1].clone()
        self._flat[:-1].div_(samples.clamp(min=1))
        gradients = self._flat[:-4]
        norm = gradients.norm()
        if max_grad_norm > 0:
            gradients.mul_((max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        largest = torch.finfo(torch.float32).max  # a comparison with it is false for infinity and for no number
        loss = self._flat[-2]
        is_fine = (loss <= min(limits[0], largest)) & (loss >= -largest) & (norm <= min(limits[1], largest))
        told = torch.cat([self._flat[-4:-1], torch.stack([samples, norm, (~is_fine).to(norm)])])
        return QueuedTotals(torch.cat([told, *(one.to(told) for one in also)]))


def _aligned(numbers: int) -> int:
    """`numbers` brought up to whole 256 bytes, where a tensor's memory of its own would begin."""
    return -(-numbers // 64) * 64
