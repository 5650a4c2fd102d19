"""Queries in parts beside each other give the same attention."""

import torch

from benchmarks.attention_speed import attend_in_parts


def test_parts_of_queries_see_all_keys() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, count, 2, 16, dtype=torch.float64, requires_grad=True) for count in (12, 5, 5))
    gradient = torch.randn(1, 12, 2, 16, dtype=torch.float64)
    whole, parts = (attend_in_parts(q, k, v, count, "sdpa") for count in (1, 4))
    torch.testing.assert_close(parts, whole)
    for one, other in zip(torch.autograd.grad(parts, (q, k, v), gradient),
                          torch.autograd.grad(whole, (q, k, v), gradient), strict=True):
        torch.testing.assert_close(one, other)
