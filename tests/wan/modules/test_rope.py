"""Rotary positions against the definition in complex numbers."""

import numpy as np
import pytest
import torch

from wan.modules.rope import Rope, grid_positions, rope_table, rotate


def test_positions_run_frame_slowest_and_column_fastest() -> None:
    positions = grid_positions((2, 1, 3), torch.device("cpu"))
    assert positions.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [1, 0, 0], [1, 0, 1], [1, 0, 2]]


@pytest.mark.parametrize(("head_dim", "pairs"), [(128, (22, 21, 21)), (64, (12, 10, 10)), (16, (4, 2, 2))])
def test_rotation_equals_multiplication_by_complex_units(head_dim: int, pairs: tuple[int, int, int]) -> None:
    positions = torch.tensor([[0, 0, 0], [5, 2, 7], [-3, 1, 0], [20, 44, 79]])
    x = torch.randn(1, 4, 2, head_dim, dtype=torch.float64)
    angle = np.concatenate([positions[:, axis, None].numpy() * 10_000.0 ** (-np.arange(count) / count)
                            for axis, count in enumerate(pairs)], axis=1)
    as_complex = x.numpy().reshape(1, 4, 2, -1, 2) @ np.array([1, 1j])
    expected = as_complex * np.exp(1j * angle)[None, :, None]
    found = rotate(x.float(), rope_table(positions, head_dim)).reshape(1, 4, 2, -1, 2)
    np.testing.assert_allclose(found.numpy() @ np.array([1, 1j]), expected, atol=2e-6)


def test_a_negative_position_turns_the_other_way() -> None:
    positions = torch.tensor([[3, 2, 1]])
    forward, backward = rope_table(positions, 32), rope_table(-positions, 32)
    assert torch.equal(forward.cos, backward.cos)
    assert torch.equal(forward.sin, -backward.sin)


def test_scores_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 1, 1, 32), torch.randn(1, 1, 1, 32)

    def score(at_q: list[int], at_k: list[int]) -> torch.Tensor:
        turned_q, turned_k = (rotate(x, rope_table(torch.tensor([at]), 32)) for x, at in ((q, at_q), (k, at_k)))
        return (turned_q * turned_k).sum()

    torch.testing.assert_close(score([5, 4, 3], [2, 2, 2]), score([0, 0, 0], [-3, -2, -1]), atol=1e-5, rtol=1e-5)


def test_rotation_keeps_the_dtype() -> None:
    rope: Rope = rope_table(torch.tensor([[1, 1, 1]]), 16)
    assert rotate(torch.ones(1, 1, 1, 16, dtype=torch.bfloat16), rope).dtype == torch.bfloat16
