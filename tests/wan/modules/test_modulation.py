"""Runs of tokens with timesteps of their own equal each run by itself."""

import torch

from wan.modules.modulation import Segment, add_gated, shift_and_scale

DIM = 8


def test_two_runs_equal_each_by_itself() -> None:
    tokens, update, own = torch.randn(2, 5, DIM), torch.randn(2, 5, DIM), torch.randn(1, 6, DIM)
    video, extra = Segment(3, torch.randn(2, 1, 6, DIM)), Segment(2, torch.randn(1, 2, 6, DIM))
    shifted = shift_and_scale(tokens, (video, extra), own, (0, 1), 1e-6)
    gated = add_gated(tokens, update, (video, extra), own, 2)
    for where, segment in ((slice(0, 3), video), (slice(3, 5), extra)):
        alone = shift_and_scale(tokens[:, where], (segment,), own, (0, 1), 1e-6)
        assert torch.equal(shifted[:, where], alone)
        alone = add_gated(tokens[:, where], update[:, where], (segment,), own, 2)
        assert torch.equal(gated[:, where], alone)


def test_the_formulas() -> None:
    tokens, update, own = torch.randn(1, 3, DIM), torch.randn(1, 3, DIM), torch.randn(1, 6, DIM)
    table = torch.randn(1, 1, 6, DIM)
    rows = table[0, 0] + own[0]
    normed = (tokens - tokens.mean(-1, keepdim=True)) / (tokens.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    found = shift_and_scale(tokens, (Segment(3, table),), own, (3, 4), 1e-6)
    torch.testing.assert_close(found, normed * (1 + rows[4]) + rows[3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(add_gated(tokens, update, (Segment(3, table),), own, 5), tokens + update * rows[5])


def test_a_sum_in_float32_returns_to_the_dtype_of_the_tokens() -> None:
    tokens, own = torch.randn(1, 3, DIM).bfloat16(), torch.zeros(1, 6, DIM)
    found = add_gated(tokens, tokens, (Segment(3, torch.full((1, 1, 6, DIM), 0.5)),), own, 2)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, (tokens.float() * 1.5).bfloat16())
