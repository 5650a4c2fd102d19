"""A budget of tokens: no batch above it, long clips from their start, and names where nothing fits."""

from dataclasses import replace
import logging

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from common.errors import ConfigError
from dataset.plan import TrainingItem
from dataset.sampler import BatchSampler
from dataset.spans import Span
from tests.training.cached_clips import item
from training.budget import tokens, within_budget
from training.clips import digest

PATCH = (1, 2, 2)


def clips(*frames: int, batch_size: int = 4, side: int = 64, copies: int = 1) -> list[TrainingItem]:
    """Clips of square pictures; a side of 64 is 16 tokens a latent frame."""
    made = []
    for number, count in enumerate(frames):
        span = Span(0, count, side, side)
        for copy in range(copies):
            one = replace(item(f"{number}-{copy}", (span,)), batch_size=batch_size)
            sizes = {"F": (count + 3) // 4, "H": side // 8, "W": side // 8, "N": count}
            made.append(TrainingItem(one, span, (), sizes))
    return made


def test_a_batch_holds_what_fits_and_no_more_than_the_dataset_says() -> None:
    found = within_budget(clips(9, 5, 1), 100, PATCH)
    assert [one.batch_size for one in found] == [2, 3, 4], "48, 32 and 16 tokens a clip"
    assert all(one.shown is None for one in found)


def test_a_clip_that_is_too_long_keeps_its_start_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = within_budget(clips(33, 9, 17, 33), 80, PATCH)
    assert [one.frames for one in found] == [17, 9, 17, 17]
    assert [one.batch_size for one in found] == [1, 1, 1, 1]
    assert found[0].sizes == {"F": 5, "H": 8, "W": 8, "N": 17} and found[0].span.frames == 33
    assert "2 of 4 clips are shown from their start alone: 2 with 17 of 33 frames" in caplog.text


def test_a_shortened_clip_may_stand_beside_clips_of_that_length() -> None:
    found = within_budget(clips(33, 17), 160, PATCH)
    assert [one.frames for one in found] == [33, 17]
    short = within_budget(clips(33, 17), 80, PATCH)
    assert short[0].bucket == short[1].bucket


def test_pictures_that_do_not_fit_are_named() -> None:
    with pytest.raises(ConfigError, match=r"not even one latent frame of 0-0\.mp4@0 \(16 tokens a latent frame\)"):
        within_budget(clips(9), 15, PATCH)


def test_a_model_that_is_given_the_last_frame_is_not_shortened() -> None:
    with pytest.raises(ConfigError, match=r"would shorten 0-0\.mp4@0, and a first\+last frame"):
        within_budget(clips(9), 32, PATCH, needs_end=True)
    assert within_budget(clips(9), 48, PATCH, needs_end=True)[0].frames == 9


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 5), st.integers(1, 3), st.integers(16, 400),
       st.integers(1, 3))
def test_no_batch_is_above_the_budget_and_every_clip_is_shown_once(lengths: list[int], batch_size: int, copies: int,
                                                                   budget: int, world: int) -> None:
    own = within_budget(clips(*(4 * n + 1 for n in lengths), batch_size=batch_size, copies=copies), budget, PATCH)
    seen: list[tuple[int, str]] = []
    for rank in range(world):
        for min_frames in (None, 9):
            for plan in BatchSampler(own, seed=1, epoch=1, world_size=world, rank=rank, min_frames=min_frames):
                assert sum(tokens(one, PATCH) for one in plan.items) <= budget
                assert len(plan.items) <= batch_size
                if min_frames is None:
                    seen += [(p, one.name) for one, p, w in zip(plan.items, plan.positions, plan.weights, strict=True)
                             if w]
    assert sorted(p for p, _ in seen) == list(range(len(own)))
    assert sorted(name for _, name in seen) == sorted(one.name for one in own)


def test_processes_with_other_budgets_are_told_apart() -> None:
    assert digest(within_budget(clips(9), 100, PATCH)) != digest(within_budget(clips(9), 60, PATCH))
    assert digest(within_budget(clips(9), 100, PATCH)) != digest(within_budget(clips(9), 32, PATCH))
