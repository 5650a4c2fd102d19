"""The kernel of `vae_rows` in Triton: one pass over a convolution's result for all that stands before the next one."""

from typing import TYPE_CHECKING

from torch import Tensor
import triton
import triton.language as tl

from common.devices import on_its_device

if TYPE_CHECKING:
    from wan.memory.vae_rows import Pending, Wanted

ELEMENTS = 4096
"""Numbers that one program holds, as rows of channels."""


@triton.jit
def _finish(conv, bias, skipped, gamma, total, copy, rows, clip_rows, room_rows, high, wide, scale,  # noqa: PLR0913
            channels: tl.constexpr, width: tl.constexpr, height: tl.constexpr, has_bias: tl.constexpr,
            has_skipped: tl.constexpr, has_gamma: tl.constexpr, is_activated: tl.constexpr, is_phased: tl.constexpr,
            is_padded: tl.constexpr, is_single: tl.constexpr, writes_total: tl.constexpr, writes_copy: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * height + tl.arange(0, height)
    column = tl.arange(0, width)
    inside = (row < rows)[:, None] & (column < channels)[None, :]
    x, y, picture = row % wide, (row // wide) % high, row // wide // high
    place = row[:, None] * channels + column[None, :]
    source = row
    if is_phased:
        source = (picture * (high // 2 + 1) + y // 2 + y % 2) * (wide // 2 + 1) + x // 2 + x % 2
        source = source * 4 + y % 2 * 2 + x % 2
    value = tl.load(conv + source[:, None] * channels + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if has_bias:
        value += tl.load(bias + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
    if has_skipped:
        value += tl.load(skipped + place, mask=inside, other=0.0).to(tl.float32)
    if writes_total:
        tl.store(total + place, value.to(total.dtype.element_ty), mask=inside)
    if writes_copy:
        if has_gamma:
            size = tl.sqrt(tl.sum(value * value, axis=1))
            value = value * (scale / tl.maximum(size, 1e-12))[:, None]
            value *= tl.load(gamma + column, mask=column < channels, other=0.0).to(tl.float32)[None, :]
        if is_activated:
            value = value / (1.0 + tl.exp(-value))
        moved = row
        if is_padded:
            moved = (picture * (high + 1) + y) * (wide + 1) + x
        elif is_single:
            moved = row + room_rows
        else:
            moved = row + (row // clip_rows + 1) * room_rows
        tl.store(copy + moved[:, None] * channels + column[None, :], value.to(copy.dtype.element_ty), mask=inside)


def finish_rows(pending: "Pending", wanted: "Wanted", total: Tensor | None, copy: Tensor | None) -> None:
    """`vae_rows.finish` on memory of ``B T H W C``: writes `total` (it may be the convolution's) and `copy`."""
    conv, bias, skipped, gamma = pending.conv, pending.bias, pending.skipped, wanted.gamma
    batch, channels, frames, high, wide = pending.shape
    clip_rows = frames * high * wide
    width = triton.next_power_of_2(channels)
    height = max(1, ELEMENTS // width)
    with on_its_device(conv):
        # A place that is not read or written still needs a pointer.
        _finish[(triton.cdiv(batch * clip_rows, height),)](
            conv, conv if bias is None else bias, conv if skipped is None else skipped,
            conv if gamma is None else gamma, conv if total is None else total, conv if copy is None else copy,
            batch * clip_rows, clip_rows, wanted.room * high * wide, high, wide, channels**0.5,
            channels=channels, width=width, height=height, has_bias=bias is not None, has_skipped=skipped is not None,
            has_gamma=gamma is not None, is_activated=wanted.activated, is_phased=pending.phased,
            is_padded=wanted.padded, is_single=batch == 1, writes_total=total is not None,
            writes_copy=copy is not None, num_warps=4)
