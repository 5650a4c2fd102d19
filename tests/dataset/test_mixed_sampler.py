"""Batches whose entry is drawn: shares as asked, one order for any number of processes, whole after a stop."""

from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.plan import TrainingItem
from dataset.sampler import BatchPlan, BatchSampler, MixedSampler
from tests.dataset.test_sampler import counted, items


def sectioned(counts: list[int], *, batch_size: int = 1) -> list[TrainingItem]:
    """Clips of as many entries as `counts` has numbers, a size each."""
    return [replace(one, item=replace(one.item, section_index=int(one.item.key.split("-")[0])))
            for one in items(counts, batch_size=batch_size)]


def epoch(clips: list[TrainingItem], shares: dict[int, float], *, world: int = 1, number: int = 1, start_at: int = 0,
          seed: int = 3) -> list[list[BatchPlan]]:
    """Plans of all processes, rank by rank."""
    return [list(MixedSampler(clips, shares, seed=seed, epoch=number, world_size=world, rank=rank, start_at=start_at))
            for rank in range(world)]


def test_a_plain_epoch_keeps_the_order_it_has_always_had() -> None:
    """Recorded before there were shares."""
    def order(rank: int) -> list[tuple[tuple[int, ...], list[str]]]:
        return [(plan.positions, [one.item.key for one in plan.items])
                for plan in BatchSampler(items([3, 4]), seed=3, epoch=1, world_size=2, rank=rank)]

    assert order(0) == [((0, 1), ["1-0", "1-3"]), ((4, 5), ["0-2", "0-0"])]
    assert order(1) == [((2, 3), ["1-1", "1-2"]), ((6,), ["0-1"])]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=3), st.sampled_from([(1, 4, 2, 2), (1, 2, 2, 1), (1, 3, 3, 1)]),
       st.integers(1, 4))
def test_two_processes_see_the_halves_of_one_process_with_twice_the_batch(
        counts: list[int], split: tuple[int, int, int, int], number: int) -> None:
    world_a, batch_a, world_b, batch_b = split
    shares = {section: 1 / len(counts) for section in range(len(counts))}
    one = epoch(sectioned(counts, batch_size=batch_a), shares, world=world_a, number=number)
    other = epoch(sectioned(counts, batch_size=batch_b), shares, world=world_b, number=number)
    assert counted(one) == counted(other)
    assert [position for position, _ in counted(one)] == list(range(len(counted(one))))
    assert [plan.global_count for plan in one[0]] == [plan.global_count for plan in other[0]]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=3), st.integers(0, 22), st.integers(1, 3))
def test_a_start_in_the_middle_gives_the_rest(counts: list[int], start_at: int, number: int) -> None:
    clips, shares = sectioned(counts, batch_size=2), {section: 1 / len(counts) for section in range(len(counts))}
    assert epoch(clips, shares, number=number, start_at=start_at) == [
        epoch(clips, shares, number=number)[0][start_at:]]


def test_entries_come_as_often_as_their_shares_say_and_each_goes_round_its_own_clips() -> None:
    clips = sectioned([40, 360])
    [plans] = epoch(clips, {1: 0.25, 0: 0.75})
    assert len(plans) == 400
    seen = Counter(plan.items[0].item.key for plan in plans)
    of_first = sum(count for key, count in seen.items() if key.startswith("0-"))
    assert 265 <= of_first <= 335, "300 expected, four deviations of 8.7"
    rounds = [seen[f"0-{number}"] for number in range(40)]
    assert max(rounds) - min(rounds) <= 1 and min(rounds) >= 6, "shuffled anew only when all were seen"
    assert max(seen[f"1-{number}"] for number in range(360)) == 1
    own = [plan.items[0].item.key for plan in plans if plan.items[0].item.section_index == 0]
    assert own[:40] != own[40:80] and set(own[:40]) == set(own[40:80])


def test_draws_hang_on_seed_and_epoch_and_not_on_the_order_of_the_shares() -> None:
    clips = sectioned([10, 10])

    def entries(**place: int) -> list[int]:
        return [plan.items[0].item.section_index for plan in epoch(clips, {0: 0.5, 1: 0.5}, **place)[0]]

    assert entries() != entries(number=2) and entries() != entries(seed=4)
    assert epoch(clips, {0: 0.2, 1: 0.8}) == epoch(clips, {1: 0.8, 0: 0.2})


def test_the_samples_of_an_epoch_are_counted() -> None:
    clips = sectioned([5, 3], batch_size=2)
    for number in range(1, 6):
        sampler = MixedSampler(clips, {0: 0.5, 1: 0.5}, seed=1, epoch=number)
        assert sampler.batches_per_epoch == 5 and sampler.samples == sum(plan.global_count for plan in sampler)
    assert BatchSampler(clips, seed=1, epoch=1).samples == 8
