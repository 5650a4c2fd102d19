"""Batches: every clip exactly as often as asked, in an order that no process count changes."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
import pickle

from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.items import Item
from dataset.plan import FeatureEntry, TrainingItem
from dataset.rows import FileRef
from dataset.sampler import BatchPlan, BatchSampler, drawn_length
from dataset.sources import Clock
from dataset.spans import Span
from tests.dataset.toys import ToyLatents


def items(counts: list[int], *, repeats: int = 1, batch_size: int = 2) -> list[TrainingItem]:
    """Clips in one bucket for each number of `counts`."""
    made = []
    for bucket, count in enumerate(counts):
        for number in range(count):
            name = f"{bucket}-{number}"
            span = Span(0, 4 * bucket + 1, 32, 32)
            item = Item(key=name, name=name, where=name, section="s", section_index=0, kind="video",
                        media=FileRef(Path(name), name), content=name, caption="", clock=Clock(16.0), n_frames=99,
                        picture_start_s=0.0, spans=(span,), repeats=repeats, batch_size=batch_size, cache=Path("c"))
            made.append(TrainingItem(item, span, (FeatureEntry(ToyLatents.spec, Path("x")),), {}))
    return made


def epoch(clips: list[TrainingItem], world_size: int, number: int = 0, **options: int) -> list[list[BatchPlan]]:
    """Plans of all processes, rank by rank."""
    return [list(BatchSampler(clips, seed=3, epoch=number, world_size=world_size, rank=rank, **options))
            for rank in range(world_size)]


def counted(plans: list[list[BatchPlan]]) -> list[tuple[int, str]]:
    """(position, clip) of every sample that counts, in the order of positions."""
    return sorted((position, item.name) for rank in plans for plan in rank
                  for item, position, weight in zip(plan.items, plan.positions, plan.weights, strict=True) if weight)


counts = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_every_clip_appears_exactly_num_repeats_times_an_epoch(buckets: list[int], repeats: int, batch_size: int,
                                                              world_size: int, number: int) -> None:
    clips = items(buckets, repeats=repeats, batch_size=batch_size)
    samples = counted(epoch(clips, world_size, number))
    assert Counter(name for _, name in samples) == {clip.name: repeats for clip in clips}
    assert [position for position, _ in samples] == list(range(len(samples)))


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(1, 3), st.sampled_from([(1, 4, 2, 2), (1, 2, 2, 1), (4, 1, 2, 2), (1, 6, 3, 2)]))
def test_same_global_batch_gives_the_same_sequence_for_any_number_of_processes(
        buckets: list[int], repeats: int, split: tuple[int, int, int, int]) -> None:
    clips = items(buckets, repeats=repeats)
    world_a, batch_a, world_b, batch_b = split
    one = epoch(clips, world_a, batch_size=batch_a)
    other = epoch(clips, world_b, batch_size=batch_b)
    assert counted(one) == counted(other)
    assert [plan.global_count for plan in one[0]] == [plan.global_count for plan in other[0]]


@settings(max_examples=30, deadline=None)
@given(counts, st.integers(1, 4), st.integers(1, 4))
def test_processes_step_together_and_a_batch_holds_one_bucket(buckets: list[int], batch_size: int, world_size: int
                                                             ) -> None:
    ranks = epoch(items(buckets, batch_size=batch_size), world_size)
    assert len({len(plans) for plans in ranks}) == 1
    for plans in zip(*ranks, strict=True):
        assert len({item.bucket for plan in plans for item in plan.items}) == 1
        assert sum(sum(plan.weights) for plan in plans) == plans[0].global_count
        assert all(1 <= len(plan.items) <= batch_size for plan in plans)


def test_short_last_batch_is_kept_and_an_empty_process_repeats_with_weight_zero() -> None:
    first, second = epoch(items([1]), 2)
    assert (first[0].weights, second[0].weights) == ((1.0,), (0.0,))
    assert first[0].items == second[0].items
    assert (first[0].global_count, second[0].positions) == (1, (0,))


@settings(max_examples=30, deadline=None)
@given(counts, st.integers(0, 8))
def test_resuming_gives_the_rest_of_the_epoch(buckets: list[int], start_at: int) -> None:
    clips = items(buckets)
    whole = list(BatchSampler(clips, seed=1, epoch=2))
    rest = BatchSampler(clips, seed=1, epoch=2, start_at=start_at)
    assert list(rest) == whole[start_at:]
    assert len(rest) == len(whole[start_at:])


def test_epochs_and_seeds_differ_and_repeat() -> None:
    clips = items([20])
    orders = {(seed, number): tuple(name for plan in BatchSampler(clips, seed=seed, epoch=number)
                                    for name in [item.name for item in plan.items])
              for seed in (0, 1) for number in (0, 1)}
    assert len(set(orders.values())) == 4
    assert orders[0, 1] == tuple(item.name for plan in BatchSampler(clips, seed=0, epoch=1) for item in plan.items)


def test_plans_are_picklable() -> None:
    plan = next(iter(BatchSampler(items([3]), seed=0, epoch=0)))
    assert pickle.loads(pickle.dumps(plan)) == plan  # noqa: S301


def test_a_lower_limit_of_samples_makes_smaller_batches() -> None:
    clips = [replace(one, most=3) for one in items([8], batch_size=4)]
    assert sorted(len(plan.items) for plan in epoch(clips, 1)[0]) == [2, 3, 3]
    assert {plan.global_count for plan in epoch(clips, 2)[0]} == {6, 2}
    assert {len(plan.items) for plan in epoch([replace(one, most=9) for one in clips], 1)[0]} == {4}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 50), st.integers(0, 50))
def test_a_drawn_length_lies_between_the_smallest_and_all(n: int, smallest: int, number: int, index: int) -> None:
    frames, least = 4 * n + 1, 4 * smallest + 1
    found = drawn_length(frames, least, seed=1, epoch=number, index=index)
    assert (found - 1) % 4 == 0 and min(least, frames) <= found <= frames


def test_every_length_is_drawn_about_as_often() -> None:
    found = Counter(drawn_length(21, 5, seed=1, epoch=1, index=index) for index in range(2000))
    assert sorted(found) == [5, 9, 13, 17, 21]
    assert all(300 < count < 500 for count in found.values()), "400 each, five deviations of 18 either way"


@settings(max_examples=20, deadline=None)
@given(counts, st.sampled_from([(1, 4, 2, 2), (1, 2, 2, 1), (4, 1, 2, 2)]))
def test_a_global_batch_has_one_length_for_any_number_of_processes(buckets: list[int],
                                                                  split: tuple[int, int, int, int]) -> None:
    clips = [replace(one, span=replace(one.span, frames=41), sizes={"F": 11, "N": 41}) for one in items(buckets)]
    world_a, batch_a, world_b, batch_b = split
    lengths = []
    for world, batch in ((world_a, batch_a), (world_b, batch_b)):
        ranks = epoch(clips, world, batch_size=batch, min_frames=5)
        for plans in zip(*ranks, strict=True):
            assert len({(one.frames, one.sizes["F"], one.sizes["N"]) for plan in plans for one in plan.items}) == 1
        lengths.append([plan.items[0].frames for plan in ranks[0]])
        assert counted(ranks) == counted(epoch(clips, world, batch_size=batch))
    assert lengths[0] == lengths[1]
    again = BatchSampler(clips, seed=3, epoch=0, batch_size=batch_a * world_a, min_frames=5, start_at=1)
    assert [plan.items[0].frames for plan in again] == lengths[0][1:]
