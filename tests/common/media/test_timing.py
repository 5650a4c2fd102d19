"""Frames at another rate: by time stamps, and by musubi-tuner's rule."""

from fractions import Fraction

import numpy as np
import pytest

from common.media.timing import pick_by_source_fps, pick_by_time


def times(count: int, fps: Fraction | int) -> np.ndarray:
    return np.array([float(index / Fraction(fps)) for index in range(count)])


@pytest.mark.parametrize("fps", [8, 16, 25, 30, Fraction(30000, 1001), Fraction(24000, 1001), 60])
def test_equal_rates_give_every_picture_once(fps: Fraction | int) -> None:
    for tick in (1e-3, 1 / 90_000):
        rounded = np.round(times(500, fps) / tick) * tick
        picks = pick_by_time(rounded, 500 / float(fps), fps=fps, tick_s=tick)
        assert picks.tolist() == list(range(500))


def test_twice_the_rate_gives_every_second_picture_from_the_first() -> None:
    assert pick_by_time(times(50, 50), 1.0, fps=25, tick_s=1e-4).tolist() == list(range(0, 50, 2))


def test_half_the_rate_shows_every_picture_twice() -> None:
    assert pick_by_time(times(4, 12), 4 / 12, fps=24, tick_s=1e-4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_trembling_time_stamps_neither_drop_nor_repeat() -> None:
    trembling = times(250, 25) + np.random.default_rng(0).uniform(-0.015, 0.015, 250)
    trembling -= trembling[0]
    assert pick_by_time(trembling, 10.0, fps=25, tick_s=1e-4).tolist() == list(range(250))


@pytest.mark.parametrize("source", [24, Fraction(24000, 1001), Fraction(30000, 1001), 30, 50, 60])
@pytest.mark.parametrize("fps", [16, 25])
def test_no_event_moves_by_more_than_half_a_frame(source: Fraction | int, fps: int) -> None:
    stamps = times(2000, source)
    picks = pick_by_time(stamps, 2000 / float(source), fps=fps, tick_s=1e-5)
    for event in range(1, 2000, 37):
        shown_from = int(np.searchsorted(picks, event)) / fps
        assert abs(shown_from - stamps[event]) <= 0.5 / fps + 1e-4


@pytest.mark.parametrize(("fps", "source_fps", "frames", "expected"), [
    (16, 30, 30, 16),   # musubi.md 2.1, measured on musubi-tuner
    (16, 12, 30, 30),   # likewise: never repeats, so it runs too fast
    (16, 16, 30, 30),
    (25, 50, 100, 50),
])
def test_source_fps_keeps_as_many_pictures_as_musubi_tuner(fps: float, source_fps: float, frames: int,
                                                           expected: int) -> None:
    assert len(pick_by_source_fps(frames, fps=fps, source_fps=source_fps)) == expected


def test_source_fps_keeps_the_picture_on_which_the_running_value_steps() -> None:
    # floor(i*16/30) is 0 0 1 1 2 2 3 3 4 4 5 5 6 6 7 | 8 8, but fifteen float steps stay just below 8, there as here.
    assert pick_by_source_fps(17, fps=16, source_fps=30).tolist() == [0, 2, 4, 6, 8, 10, 12, 14, 16]
