"""Frame extraction: musubi-tuner's measured cases (reference page section 2.2)."""

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dataset.spans import Extraction, Span


@pytest.mark.parametrize(("extraction", "starts"), [
    (Extraction("head", (13,)), [0]),
    (Extraction("chunk", (13,)), [0, 13, 26]),
    (Extraction("slide", (13,), stride=10), [0, 10, 20]),
    (Extraction("uniform", (13,), samples=4), [0, 9, 18, 27]),
])
def test_forty_frames_are_cut_as_musubi_cuts_them(extraction: Extraction, starts: list[int]) -> None:
    assert extraction.cuts(40) == [(start, 13) for start in starts]


def test_full_takes_the_longest_valid_clip_and_ignores_the_targets() -> None:
    assert Extraction("full", (81,), max_frames=31).cuts(40) == [(0, 29)]
    assert Extraction("full", (81,), max_frames=129).cuts(40) == [(0, 37)]


def test_source_gives_clips_of_every_length_that_fits() -> None:
    assert Extraction("head", (1, 25, 45)).cuts(40) == [(0, 1), (0, 25)]


def test_short_source_gives_nothing() -> None:
    for mode in ("head", "chunk", "slide", "uniform"):
        assert Extraction(mode, (17,)).cuts(10) == []
    assert Extraction("full").cuts(0) == []


def test_uniform_on_a_source_of_just_the_length_gives_one_clip() -> None:
    assert Extraction("uniform", (13,), samples=4).cuts(13) == [(0, 13)]


@given(st.sampled_from(["head", "chunk", "slide", "uniform", "full"]), st.integers(0, 300), st.integers(0, 20),
       st.integers(1, 9), st.integers(1, 9))
def test_clips_lie_inside_the_source_and_differ(mode: str, available: int, n: int, stride: int, samples: int) -> None:
    cuts = Extraction(mode, (4 * n + 1,), stride=stride, samples=samples).cuts(available)
    assert len(cuts) == len(set(cuts))
    for start, frames in cuts:
        assert frames % 4 == 1
        assert 0 <= start <= start + frames <= available


def test_span_knows_its_end_and_size() -> None:
    span = Span(4, 13, 64, 32)
    assert (span.end, span.size) == (17, (64, 32))
