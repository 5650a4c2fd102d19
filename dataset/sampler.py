"""Which clips stand in which batch: the same for any number of processes, and after any interruption."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import itertools
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


_GlobalBatch = tuple[list[int], int]
"""Indices into the clips, and the batch size of one process."""


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
        self._world_size = world_size
        self._batch_size = batch_size
        self._batches = self._ordered()

    def __len__(self) -> int:
        """Global batches that are left of the epoch."""
        return max(0, len(self._batches) - self.start_at)

    @property
    def batches_per_epoch(self) -> int:
        """Global batches of the whole epoch."""
        return len(self._batches)

    @property
    def samples(self) -> int:
        """Samples of the whole epoch, over all processes."""
        return sum(len(members) for members, _ in self._batches)

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

    def _ordered(self) -> list[_GlobalBatch]:
        """Every global batch, in the order of the epoch."""
        return self._shuffled_once(range(len(self._items)))

    def _shuffled_once(self, members: Sequence[int], *round_: int) -> list[_GlobalBatch]:
        """Every global batch of the clips `members` once; another `round_` gives another order."""
        buckets: dict[Any, list[int]] = {}
        for index in members:
            one = self._items[index]
            buckets.setdefault(one.bucket, []).extend([index] * one.item.repeats)
        batches: list[_GlobalBatch] = []
        for number, own in enumerate(buckets.values()):
            size = self._batch_size or self._items[own[0]].batch_size
            shuffled = _shuffled(own, self._seed, self.epoch, *round_, number)
            step = size * self._world_size
            batches += [(shuffled[start:start + step], size) for start in range(0, len(shuffled), step)]
        return _shuffled(batches, self._seed, self.epoch, *round_, len(buckets))


class MixedSampler(BatchSampler):
    """The global batches of an epoch in which a draw decides which entry of the TOML each of them comes from.

    An epoch has as many batches as its entries have together. Batch `index` draws its entry by `shares`, from (seed,
    epoch, index), and takes the next batch of that entry's own order, which is shuffled anew when it is used up. So an
    entry with a small share is not seen whole in every epoch, and one with a large share is seen more than once.
    """

    def __init__(self, items: Sequence[TrainingItem], shares: Mapping[int, float], **order: Any) -> None:
        """`shares`: how likely each entry (`section_index`) is, above 0; `order`: the arguments of `BatchSampler`."""
        self._shares = dict(sorted(shares.items()))
        super().__init__(items, **order)

    def _ordered(self) -> list[_GlobalBatch]:
        members: dict[int, list[int]] = {section: [] for section in self._shares}
        for index, one in enumerate(self._items):
            members[one.item.section_index].append(index)
        assert all(members.values()), "an entry without clips"
        first = {section: self._shuffled_once(own, 0, section) for section, own in members.items()}
        streams = {section: self._endless(first[section], own, section) for section, own in members.items()}
        return [next(streams[self._drawn_entry(index)]) for index in range(sum(map(len, first.values())))]

    def _drawn_entry(self, index: int) -> int:
        bounds = [*itertools.accumulate(self._shares.values())]
        draw = torch.rand((), generator=generator(self._seed, "phase", self.epoch, index), dtype=torch.float64)
        return [*self._shares][bisect.bisect_right(bounds[:-1], float(draw) * bounds[-1])]

    def _endless(self, first: Sequence[_GlobalBatch], members: Sequence[int], section: int) -> Iterator[_GlobalBatch]:
        yield from first
        for round_ in itertools.count(1):
            yield from self._shuffled_once(members, round_, section)


def drawn_length(frames: int, min_frames: int, *, seed: int, epoch: int, index: int) -> int:
    """Frames (4n+1) that global batch `index` shows of clips of `frames`: from `min_frames` to all, each as likely.

    Clips of `min_frames` or fewer stay whole.
    """
    choices = range(min(min_frames, frames), frames + 1, VAE_TEMPORAL_STRIDE)
    return choices[int(torch.randint(len(choices), (), generator=generator(seed, "length", epoch, index)))]


def _shuffled(values: Sequence[Any], seed: int, *place: int) -> list[Any]:
    order = torch.randperm(len(values), generator=generator(seed, "batches", *place))
    return [values[index] for index in order.tolist()]
