"""Buckets: counts and choices of musubi-tuner (its own numbers, reference page section 2.3)."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dataset.buckets import Buckets


@pytest.mark.parametrize(("resolution", "count"), [((960, 544), 47), ((832, 480), 42), ((512, 512), 33)])
def test_number_of_buckets_is_musubis(resolution: tuple[int, int], count: int) -> None:
    assert len(Buckets(resolution, enabled=True).sizes) == count


def test_buckets_are_sorted_unique_and_within_the_area() -> None:
    sizes = Buckets((832, 480), enabled=True).sizes
    assert list(sizes) == sorted(set(sizes))
    assert all(w % 16 == 0 and h % 16 == 0 and w * h <= 832 * 480 for w, h in sizes)


def test_without_bucketing_there_is_one_size_for_every_source() -> None:
    buckets = Buckets((250, 140), enabled=False)
    assert buckets.choose(1080, 1920) == buckets.choose(1920, 1080) == (240, 128)


def test_nearest_aspect_ratio_is_chosen() -> None:
    # 320x192 at resolution 192: musubi-tuner writes 256x144 (reference page section 3).
    assert Buckets((192, 192), enabled=True).choose(320, 192) == (256, 144)
    assert Buckets((512, 512), enabled=True).choose(1000, 1000) == (512, 512)


def test_small_source_keeps_its_size_without_upscaling() -> None:
    buckets = Buckets((512, 512), enabled=True, no_upscale=True)
    assert buckets.choose(333, 205) == (320, 192)
    assert buckets.choose(1920, 1080) in buckets.sizes
    assert buckets.choose(100, 9) == (0, 0)


def test_other_multiple_gives_other_sizes() -> None:
    assert all(w % 32 == 0 and h % 32 == 0 for w, h in Buckets((704, 704), enabled=True, multiple=32).sizes)


@given(st.integers(16, 2000), st.integers(16, 2000), st.integers(1, 4000), st.integers(1, 4000))
def test_every_choice_is_on_offer(width: int, height: int, source_width: int, source_height: int) -> None:
    buckets = Buckets((width, height), enabled=True)
    assert buckets.choose(source_width, source_height) in buckets.sizes
