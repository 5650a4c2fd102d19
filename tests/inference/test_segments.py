"""Chunks of a long video: against OmniAvatar's own table, and by what must hold for any cut."""

import json

from hypothesis import given
from hypothesis import strategies as st
import pytest

from common.timebase import frames_in, is_valid_frame_count, omniavatar_frames_for_tokens
from inference.segments import SoundTiming, chunk_problem, cut_into_segments, overlap_problem
from inference.sizes import OMNIAVATAR_SIZES, nearest_size

OMNIAVATAR = SoundTiming(lead_s=0.3, shift=1)


def test_omniavatars_chunks_are_reproduced(golden):
    """Every case of the original script: sizes, lengths, given latents, the rows that are heard, the frames kept."""
    cases = json.loads((golden / "omniavatar_segments.json").read_text(encoding="utf-8"))
    assert len(cases) == 26
    for case in cases:
        height, width = nearest_size(tuple(case["image_size"]), OMNIAVATAR_SIZES[case["max_hw"]])
        assert [height, width] == case["selected_size"]
        longest = omniavatar_frames_for_tokens(case["max_tokens"], height, width)
        overlap = case["overlap_frame"] if case["random_prefix_frames"] else 1
        assert longest == case["L"]
        if case["error"]:
            assert overlap_problem(overlap)
            continue
        assert not overlap_problem(overlap)
        rows = frames_in(case["audio_samples"] / 16_000, 25)
        segments = cut_into_segments(rows + 1, longest, overlap, whole=True)
        assert len(segments) == case["times"] and rows == case["ori_audio_len"]
        assert segments[-1].rows(OMNIAVATAR).stop == case["audio_len"]
        assert [[one.index, one.new_local.start, one.new_local.stop] for one in segments] == case["video_runs"]
        assert segments[-1].new.stop == case["video_frames"]
        for ours, theirs in zip(segments, case["segments"], strict=True):
            heard = ours.rows(OMNIAVATAR)
            assert (ours.known_latents, ours.latents) == (theirs["prefix_latents"], theirs["latent_frames"])
            assert max(-heard.start, 0) == theirs["zero_rows"] and heard.stop == theirs["end_row"]
            assert max(heard.start, 0) == theirs["first_row"] and len(heard) == theirs["rows"]


@given(total=st.integers(1, 400), quarter=st.integers(1, 20), shorter=st.integers(1, 20), whole=st.booleans(),
       loudness=st.one_of(st.none(), st.lists(st.floats(0, 1), min_size=400, max_size=400)))
def test_every_frame_is_made_once_and_follows_what_is_given(total, quarter, shorter, whole, loudness):
    longest, overlap = 4 * (quarter + shorter) + 1, 4 * (quarter - 1) + 1
    segments = cut_into_segments(total, longest, overlap, whole=whole, loudness=loudness)
    assert [frame for one in segments for frame in one.new] == list(range(total))
    for before, one in zip(segments, segments[1:], strict=False):
        assert one.start + one.known == before.end == one.new.start
    for one in segments:
        assert is_valid_frame_count(one.frames) and one.frames <= longest and one.new.stop <= one.end
        assert one.known == (overlap if one.index else 1) and len(one.rows(SoundTiming())) == one.frames


def test_chunks_without_pauses_start_at_even_steps_and_the_last_is_as_short_as_it_can_be():
    segments = cut_into_segments(100, 41, 13)
    assert [(one.start, one.frames, list(one.new)[:1]) for one in segments] == [
        (0, 41, [0]), (28, 41, [41]), (56, 41, [69]), (84, 17, [97])]
    assert [one.frames for one in cut_into_segments(100, 41, 13, whole=True)] == [41] * 4
    assert [one.frames for one in cut_into_segments(30, 41, 13)] == [33]


def test_seams_fall_into_the_pause_of_speech():
    loudness = [1.0] * 120
    loudness[33:39] = [0.0] * 6  # frame 37 begins after 4n+1 frames
    first, second, *_ = cut_into_segments(120, 41, 5, loudness=loudness)
    assert first.end == second.new.start == 37
    assert cut_into_segments(120, 41, 5, loudness=[1.0] * 120)[0].end == 41, "no pause, no shorter chunk"
    loudness = [1.0] * 120
    loudness[9:13] = [0.0] * 4
    assert cut_into_segments(120, 41, 5, loudness=loudness)[0].end == 41, "too early: the chunk would be half as long"


@pytest.mark.parametrize(("overlap", "words"), [(14, "Use 13 or 17"), (0, "at least 1 frame"), (-3, "at least 1")])
def test_an_overlap_off_the_rule_is_told_with_its_neighbours(overlap, words):
    assert words in overlap_problem(overlap)
    assert overlap_problem(13) == overlap_problem(1) == ""


def test_chunks_that_bring_nothing_new_are_told():
    assert "takes over 13" in chunk_problem(100, 13, 13, 25) and "4.00 s" in chunk_problem(100, 13, 13, 25)
    assert chunk_problem(13, 13, 13, 25) == chunk_problem(100, 17, 13, 25) == ""
