"""Which clips stand in which batch: the same for any number of processes, and after any interruption."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common.seeding import generator
from common.timebase import VAE_TEMPORAL_STRIDE
from dataset.plan import TrainingItem


@dataclass(frozen=True)
class BatchPlan:
    """This process's part of one global batch.

    A process that gets nothing of a short batch repeats the batch's first clip with weight 0, so that all processes
    take every step together.
    """

    items: tuple[TrainingItem, ...]
    positions: tuple[int, ...]
    """Index of each sample in the epoch's global order: draws (noise, timestep …) are seeded by it."""
    weights: tuple[float, ...]
    """1 for a sample that counts, 0 for a repeated one."""
    global_count: int
    """Samples of the global batch that count, over all processes."""
    epoch: int
    index: int
    """Number of the global batch in its epoch."""


class BatchSampler:
    """The global batches of one epoch, as one process sees them.

    Clips of a bucket (entry of the TOML, size, length, features) are shuffled and cut into batches of batch size times
    processes; then the batches of all buckets are shuffled. The order follows from `seed` and `epoch` and from
    batch size x processes, never from the rank; every clip appears num_repeats times an epoch; short last batches are
    kept. With `min_frames` each global batch is cut to a length of its own (`drawn_length`). Process r takes the
    positions r·b … r·b + b - 1 of each global batch.
    """

    def __init__(self, items: Sequence[TrainingItem], *, seed: int, epoch: int, world_size: int = 1, rank: int = 0,
                 batch_size: int | None = None, start_at: int = 0, min_frames: int | None = None) -> None:
        """`batch_size` overrides the clips' own; `start_at` leaves out the first global batches of the epoch."""
        assert 0 <= rank < world_size, (rank, world_size)
        self.epoch = epoch
        self.start_at = start_at
        self._seed = seed
        self._min_frames = min_frames
        self._items = items
        self._rank = rank
        self._batches = _global_batches(items, seed, epoch, world_size, batch_size)

    def __len__(self) -> int:
        """Global batches that are left of the epoch."""
        return max(0, len(self._batches) - self.start_at)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of the whole epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[BatchPlan]:
        """This process's plans, in order."""
        position = 0
        for index, (members, size) in enumerate(self._batches):
            if index >= self.start_at:
                yield self._part(index, members, size, position)
            position += len(members)

    def _part(self, index: int, members: Sequence[int], size: int, position: int) -> BatchPlan:
        first = self._rank * size
        own = range(first, min(first + size, len(members)))
        weight = 1.0 if own else 0.0
        places = list(own) or [0]
        items = [self._items[members[place]] for place in places]
        if self._min_frames is not None:
            frames = drawn_length(items[0].frames, self._min_frames, seed=self._seed, epoch=self.epoch, index=index)
            items = [one.cut(frames) for one in items]
        return BatchPlan(items=tuple(items),
                         positions=tuple(position + place for place in places), weights=(weight,) * len(places),
                         global_count=len(members), epoch=self.epoch, index=index)


def drawn_length(frames: int, min_frames: int, *, seed: int, epoch: int, index: int) -> int:
    """Frames (4n+1) that global batch `index` shows of clips of `frames`: from `min_frames` to all, each as likely.

    Clips of `min_frames` or fewer stay whole.
    """
    choices = range(min(min_frames, frames), frames + 1, VAE_TEMPORAL_STRIDE)
    return choices[int(torch.randint(len(choices), (), generator=generator(seed, "length", epoch, index)))]


def _global_batches(items: Sequence[TrainingItem], seed: int, epoch: int, world_size: int, batch_size: int | None
                    ) -> list[tuple[list[int], int]]:
    """(indices into `items`, batch size of one process) of every global batch, in the order of the epoch."""
    buckets: dict[Any, list[int]] = {}
    for index, one in enumerate(items):
        buckets.setdefault(one.bucket, []).extend([index] * one.item.repeats)
    batches: list[tuple[list[int], int]] = []
    for number, members in enumerate(buckets.values()):
        size = batch_size or items[members[0]].batch_size
        shuffled = _shuffled(members, seed, epoch, number)
        step = size * world_size
        batches += [(shuffled[start:start + step], size) for start in range(0, len(shuffled), step)]
    return _shuffled(batches, seed, epoch, len(buckets))


def _shuffled(values: Sequence[Any], seed: int, epoch: int, number: int) -> list[Any]:
    order = torch.randperm(len(values), generator=generator(seed, "batches", epoch, number))
    return [values[index] for index in order.tolist()]
