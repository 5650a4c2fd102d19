"""Shift, scale and gate of a block's tokens by the time step, for runs of tokens with timesteps of their own."""

from typing import NamedTuple

from jaxtyping import Float
import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT_ATTENTION, SCALE_ATTENTION, GATE_ATTENTION, SHIFT_FFN, SCALE_FFN, GATE_FFN = range(6)
"""Rows of a modulation table."""


class Segment(NamedTuple):
    """A run of tokens: one table for all of them (middle axis 1) or one a token."""

    length: int
    table: Float[Tensor, "B one_or_length 6 D"]


Modulation = tuple[Segment, ...]
"""The runs in token order: the video's, then each condition's extra tokens. float32."""


def shift_and_scale(tokens: Float[Tensor, "B L D"], modulation: Modulation, own: Float[Tensor, "1 6 D"],
                    rows: tuple[int, int], eps: float) -> Float[Tensor, "B L D"]:
    """layer_norm(tokens)·(1 + scale) + shift in float32, returned in the tokens' dtype. `rows` = (shift, scale)."""
    def change(part: Tensor, table: Tensor) -> Tensor:
        shift, scale = (table[:, :, row] + own[:, None, row].float() for row in rows)
        normed = F.layer_norm(part.float(), part.shape[-1:], eps=eps)
        return (normed * (1 + scale) + shift).to(part.dtype)
    if len(modulation) == 1:
        return change(tokens, modulation[0].table)
    parts = tokens.split([segment.length for segment in modulation], dim=1)
    return torch.cat([change(part, segment.table) for part, segment in zip(parts, modulation, strict=True)], dim=1)


def add_gated(tokens: Float[Tensor, "B L D"], update: Float[Tensor, "B L D"], modulation: Modulation,
              own: Float[Tensor, "1 6 D"], row: int) -> Float[Tensor, "B L D"]:
    """tokens + update·gate in float32, returned in the tokens' dtype."""
    def change(part: Tensor, new: Tensor, table: Tensor) -> Tensor:
        gate = table[:, :, row] + own[:, None, row].float()
        return (part.float() + new.float() * gate).to(part.dtype)
    if len(modulation) == 1:
        return change(tokens, update, modulation[0].table)
    lengths = [segment.length for segment in modulation]
    parts = zip(tokens.split(lengths, dim=1), update.split(lengths, dim=1), modulation, strict=True)
    return torch.cat([change(part, new, segment.table) for part, new, segment in parts], dim=1)
