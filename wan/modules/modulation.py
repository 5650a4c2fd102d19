"""Shift, scale and gate of a block's tokens by the time step, for runs of tokens with timesteps of their own."""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
import torch
from torch import Tensor
from torch.nn import functional as F

from wan.modules.rows import goes_by_rows, layer_norm_rows

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
    parts = _split(tokens, modulation)
    return _join([_shift_and_scale(part, _row(segment, own, rows[0]), _row(segment, own, rows[1]), eps)
                  for part, segment in zip(parts, modulation, strict=True)])


def add_gated(tokens: Float[Tensor, "B L D"], update: Float[Tensor, "B L D"], modulation: Modulation,
              own: Float[Tensor, "1 6 D"], row: int) -> Float[Tensor, "B L D"]:
    """tokens + update·gate in float32, returned in the tokens' dtype."""
    parts = zip(_split(tokens, modulation), _split(update, modulation), modulation, strict=True)
    return _join([(part.float() + new.float() * _row(segment, own, row)).to(part.dtype)
                  for part, new, segment in parts])


def _shift_and_scale(tokens: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    if shift.shape[1] == 1 and goes_by_rows(tokens, shift, scale):
        rows = layer_norm_rows(tokens.flatten(0, 1), (1 + scale).flatten(0, 1), shift.flatten(0, 1), eps)[0]
        return rows.view_as(tokens)
    normed = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=eps)
    return (normed * (1 + scale) + shift).to(tokens.dtype)


def _row(segment: Segment, own: Tensor, row: int) -> Tensor:
    return segment.table[:, :, row] + own[:, None, row].float()


def _split(tokens: Tensor, modulation: Modulation) -> Sequence[Tensor]:
    if len(modulation) == 1:
        return (tokens,)
    return tokens.split([segment.length for segment in modulation], dim=1)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
