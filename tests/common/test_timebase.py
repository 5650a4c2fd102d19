"""The arithmetic of full chunks, against OmniAvatar's own table and against the chunks of a generation."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from common.timebase import frames_in, full_chunk_rows
from inference.segments import SoundTiming, cut_into_segments


def test_full_chunks_are_omniavatars(golden: Path) -> None:
    """`audio_len` of every case of the original script (golden README section 5)."""
    cases = [case for case in json.loads((golden / "omniavatar_segments.json").read_text(encoding="utf-8"))
             if not case["error"]]
    assert len(cases) > 20
    for case in cases:
        overlap = case["overlap_frame"] if case["random_prefix_frames"] else 1
        rows = frames_in(case["audio_samples"] / 16_000, 25)
        assert full_chunk_rows(rows, case["L"], overlap) == case["audio_len"]


@given(rows=st.integers(1, 500), quarter=st.integers(1, 20), shorter=st.integers(1, 20))
def test_the_rows_are_those_up_to_the_end_of_a_generations_last_chunk(rows: int, quarter: int, shorter: int) -> None:
    longest, overlap = 4 * (quarter + shorter) + 1, 4 * (quarter - 1) + 1
    segments = cut_into_segments(rows + 1, longest, overlap, whole=True)
    heard = full_chunk_rows(rows, longest, overlap)
    assert heard == segments[-1].rows(SoundTiming(shift=1)).stop >= rows
    assert full_chunk_rows(heard, longest, overlap) == heard, "full chunks are full"
