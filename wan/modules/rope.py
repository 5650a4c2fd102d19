"""Rotary positions over (frame, row, column): tables from integer positions, and their use on queries and keys."""

from typing import NamedTuple

from jaxtyping import Float, Int
import torch
from torch import Tensor

BASE = 10_000.0


class Rope(NamedTuple):
    """Rotation of every token, for each channel of a head: what multiplies the channel, and its pair's other one."""

    cos: Float[Tensor, "L 1 K"]
    sin: Float[Tensor, "L 1 K"]
    """Negative for the first channel of a pair."""


def grid_positions(grid: tuple[int, int, int], device: torch.device) -> Int[Tensor, "L 3"]:
    """(frame, row, column) of the video tokens, frame slowest, column fastest."""
    axes = [torch.arange(length, device=device) for length in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def rope_table(positions: Int[Tensor, "L 3"], head_dim: int) -> Rope:
    """Cosines and sines (float32, from float64 angles) for integer positions, which may be negative.

    Of the c = head_dim/2 pairs the first c - 2(c//3) turn with the frame, the next c//3 with the row, the last c//3
    with the column; pair j of an axis with n pairs turns by position · 10000^(-j/n). Source: Wan 2.1 `rope_params`.
    """
    pairs = head_dim // 2
    counts = (pairs - 2 * (pairs // 3), pairs // 3, pairs // 3)
    angles = [positions[:, axis, None].double() * _frequencies(count, positions.device)
              for axis, count in enumerate(counts)]
    angle = torch.cat(angles, dim=1)[:, None]  # L 1 C
    cos, sin = angle.cos().float(), angle.sin().float()
    return Rope(torch.stack((cos, cos), dim=-1).flatten(-2), torch.stack((-sin, sin), dim=-1).flatten(-2))


def _frequencies(count: int, device: torch.device) -> Float[Tensor, " C"]:
    return torch.pow(BASE, -torch.arange(count, dtype=torch.float64, device=device) / count)


def rotate(x: Float[Tensor, "B L N K"], rope: Rope) -> Float[Tensor, "B L N K"]:
    """Turn neighbouring pairs (x[2j], x[2j+1]) of every head by the token's angles; computed in float32."""
    exact = x.float()
    other = exact.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (exact * rope.cos + other * rope.sin).to(x.dtype)
