"""The kernel of `vae_rows` in Triton: one pass over a convolution's result for all that stands before the next one."""

import torch
from torch import Tensor
import triton
import triton.language as tl

ELEMENTS = 4096
"""Numbers that one program holds, as rows of channels."""


@triton.jit
def _finish(conv, bias, skipped, gamma, total, normed, rows, clip_rows, room_rows, scale,  # noqa: PLR0913 - a kernel
            channels: tl.constexpr, width: tl.constexpr, height: tl.constexpr, has_bias: tl.constexpr,
            has_skipped: tl.constexpr, has_gamma: tl.constexpr, is_activated: tl.constexpr,
            writes_total: tl.constexpr, writes_normed: tl.constexpr, is_single: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)
    column = tl.arange(0, width)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    place = row[:, None] * channels + column[None, :]
    value = tl.load(conv + place, mask=inside, other=0.0).to(tl.float32)
    if has_bias:
        value += tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    if has_skipped:
        value += tl.load(skipped + place, mask=inside, other=0.0).to(tl.float32)
    if writes_total:
        tl.store(total + place, value.to(total.dtype.element_ty), mask=inside)
    if writes_normed:
        if has_gamma:
            size = tl.sqrt(tl.sum(value * value, axis=1))
            value = value * (scale / tl.maximum(size, 1e-12))[:, None]
            value *= tl.load(gamma + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
        if is_activated:
            value = value / (1.0 + tl.exp(-value))
        moved = row + room_rows if is_single else row + (row // clip_rows + 1) * room_rows
        tl.store(normed + moved[:, None] * channels + column[None, :], value.to(normed.dtype.element_ty), mask=inside)


def finish_rows(conv: Tensor, bias: Tensor | None, skipped: Tensor | None, gamma: Tensor | None, *,
                total: Tensor | None, normed: Tensor | None, activated: bool) -> None:
    """`vae_rows.finish` on memory of ``B T H W C``: writes `total` (it may be `conv`) and `normed`, as far as given."""
    batch, channels, frames, high, wide = conv.shape
    rows, clip_rows = batch * frames * high * wide, frames * high * wide
    room = 0 if normed is None else normed.shape[2] - frames
    width = triton.next_power_of_2(channels)
    height = max(1, ELEMENTS // width)
    # A place that is not read or written still needs a pointer.
    with torch.cuda.device_of(conv):
        _finish[(triton.cdiv(rows, height),)](
            conv, conv if bias is None else bias, conv if skipped is None else skipped,
            conv if gamma is None else gamma, conv if total is None else total, conv if normed is None else normed,
            rows, clip_rows, room * high * wide, channels**0.5, channels=channels, width=width, height=height,
            has_bias=bias is not None, has_skipped=skipped is not None, has_gamma=gamma is not None,
            is_activated=activated, writes_total=total is not None, writes_normed=normed is not None,
            is_single=batch == 1, num_warps=4)
