"""Where the benchmark of idle time looks."""

from benchmarks.idle import CLIPS, PROFILED, ROWS, WARM, WATCHED


def test_an_epoch_ends_in_each_part_of_a_run() -> None:
    for row in ROWS:
        epoch = CLIPS * len(row.sizes)
        ends = range(epoch, row.steps, epoch)
        for first, last in ((1, WARM), (WARM + 1, WARM + PROFILED), (WARM + PROFILED + 1, WARM + PROFILED + WATCHED)):
            assert any(first <= end < last for end in ends), (row.name, first, last)
