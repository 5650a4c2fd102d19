"""Seconds of a training step: the real step on a few blocks with random weights, timed and added up.

The sizes that occur most are timed, the others follow by their floating point operations. Where the run's device is not
here nothing is timed; then only the operations are told.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
import time

import torch

from common.devices import free_memory
from common.logs import get_logger
from training.estimating.flops import flops
from training.estimating.random_weights import random_weight
from training.estimating.trial import Portions, Recipe, StepInputs, Trial, empty_dit

log = get_logger(__name__)

WARM_UPS, REPEATS = 2, 3
MOST_MEASURED = 3
"""Batch sizes and lengths that are timed."""
KNOWN_RATE = 460e12
KNOWN_RATE_NAME = ("460 TFLOP/s, what one H200 reached on 14B blocks at 480x832x81 with checkpointing (13.8 s for "
                   "6,372 TFLOP, bf16)")


@dataclass(frozen=True)
class Size:
    """Batches of one size, as often as they occur in an epoch."""

    width: int
    height: int
    frames: int
    samples: int
    tokens: int
    """Of a sample."""
    count: int

    def step_flops(self, recipe: Recipe) -> float:
        """Operations of forward and backward of such a batch."""
        each = flops(recipe.variant, self.tokens)
        spared = each.attention * recipe.offloaded_attention / recipe.variant.layers
        return self.samples * (each.step(recipe.checkpointing) - spared)

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.width}x{self.height}x{self.frames}" + (f", {self.samples} samples" if self.samples > 1 else "")


@dataclass(frozen=True)
class Timing:
    """Seconds for a batch of one size on the whole model."""

    batch_s: float
    """Forward and backward."""
    forward_s: float
    """Forward alone, without gradients."""
    optimizer_s: float
    """Sum over the gradients and the optimiser's step."""
    allocated: int
    """Peak that torch measured with the base blocks alone (0 on a CPU): not the whole model's."""


def measure(recipe: Recipe, few: Portions, inputs: StepInputs, device: torch.device) -> Timing | None:
    """Time the step on a batch; None where even a few blocks do not fit on the device."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        try:
            return _measured(recipe, few, inputs, device)
        except torch.OutOfMemoryError as error:
            log.warning("preflight: not even %d blocks fit for timing: %s", len(few.base), str(error).splitlines()[0])
            return None
        finally:
            free_memory()


def _measured(recipe: Recipe, few: Portions, inputs: StepInputs, device: torch.device) -> Timing:
    recipe = recipe.without_host_memory
    trial = Trial(recipe, partial(random_weight, device=device), dit=empty_dit(recipe), device=device,
                  blocks=few.blocks)
    trial.make_optimizer()
    assert trial.optimizer is not None
    optimizer = trial.optimizer
    batch = inputs.changed(lambda tensor: tensor.to(device))

    def optimise() -> None:
        trial.bucket.reduce(1.0)
        optimizer.step()
        trial.bucket.clear()

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    trial.bucket.clear()
    trial.forward_backward(batch, few.base)
    optimizer_s = _seconds(optimise, device)
    allocated = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    batch_s = few.total(lambda blocks: _seconds(lambda: trial.forward_backward(batch, blocks), device))
    forward_s = few.total(lambda blocks: _seconds(lambda: trial.forward(batch, blocks), device))
    trial.network.detach()
    return Timing(batch_s=max(0.0, batch_s), forward_s=max(0.0, forward_s), optimizer_s=optimizer_s,
                  allocated=allocated)


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    """Median of a few runs after warming up."""
    times = []
    for _ in range(WARM_UPS + REPEATS):
        _finish(device)
        started = time.perf_counter()
        work()
        _finish(device)
        times.append(time.perf_counter() - started)
    return median(times[WARM_UPS:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Speed:
    """Seconds of the parts of a run, averaged over its batches."""

    batch_s: float
    """A batch, forward and backward."""
    optimizer_s: float
    forward_s_per_flop: float
    """Of passes without gradients, for validation."""
    measured: tuple[tuple[Size, Timing], ...]
    share: float
    """Share of the batches whose size was measured; the others follow by their operations."""

    def step_s(self, accumulation: int) -> float:
        """An optimiser step."""
        return accumulation * self.batch_s + self.optimizer_s


def speed(recipe: Recipe, few: Portions, sizes: Sequence[Size], read: Callable[[Size], StepInputs],
          device: torch.device) -> Speed | None:
    """Measure the most frequent `sizes` and average over all; None where none could be measured."""
    measured: list[tuple[Size, Timing]] = []
    for size in sorted(sizes, key=lambda one: -one.count)[:MOST_MEASURED]:
        timing = measure(recipe, few, read(size), device)
        if timing is not None:
            measured.append((size, timing))
    if not measured:
        return None
    known = {size: timing.batch_s for size, timing in measured}

    def seconds(size: Size) -> float:
        if size in known:
            return known[size]
        near = min(known, key=lambda one: abs(one.step_flops(recipe) - size.step_flops(recipe)))
        return known[near] * size.step_flops(recipe) / near.step_flops(recipe)

    total = sum(size.count for size in sizes)
    forward = [timing.forward_s / (size.samples * flops(recipe.variant, size.tokens).forward)
               for size, timing in measured]
    return Speed(batch_s=sum(seconds(size) * size.count for size in sizes) / total,
                 optimizer_s=median(timing.optimizer_s for _, timing in measured),
                 forward_s_per_flop=median(forward), measured=tuple(measured),
                 share=sum(size.count for size, _ in measured) / total)
