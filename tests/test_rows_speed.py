"""What the benchmark of norms compares computes the same."""

import torch

from benchmarks.rows_speed import passes


def test_both_ways_of_a_pass_give_the_same() -> None:
    for one in passes(8, 512, torch.device("cpu")):
        ours, plain = (found if isinstance(found, tuple) else (found,) for found in (one.ours(), one.plain()))
        for mine, other in zip(ours, plain, strict=False):  # ours tell statistics beside it
            torch.testing.assert_close(mine.float().flatten(), other.float().flatten(), rtol=0.02, atol=0.02,
                                       msg=one.name)
