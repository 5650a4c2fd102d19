"""The kernels of `rows` in Triton: each program holds one token, reads it once and writes its result."""

import torch
from torch import Tensor
import triton
import triton.language as tl

from common.devices import on_its_device

FEWEST_WARPS, NUMBERS_A_WARP = 4, 2048
"""Of a program: 4, and 8 from 16384 numbers on; the quickest of 8 to 64 numbers a thread in one run on an H200."""


@triton.jit
def columns(block: tl.constexpr, together: tl.constexpr = 4):
    """The numbers of a row, of which a thread takes `together` neighbours at a time.

    With 4 neighbours float32 weights and tables are read without gaps. Triton would have a thread take 16 bytes of the
    narrowest tensor, 16 neighbours where eight bits are written: each reading of the others left three quarters of
    the cache's width unused (Nsight Compute on an H200).
    """
    return tl.max_contiguous(tl.arange(0, block), together)


@triton.jit
def normed_row(x, weight, shift, row, column, inside, token_rows, eps, width: tl.constexpr,  # noqa: PLR0913
               has_shift: tl.constexpr):
    """A row of a modulated layer norm in float32, its mean and its inverse deviation."""
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / width
    value = tl.where(inside, value - mean, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
    of_sample = row // token_rows * width + column
    value = value * scale * tl.load(weight + of_sample, mask=inside, other=0.0)
    if has_shift:
        value += tl.load(shift + of_sample, mask=inside, other=0.0)
    return value, mean, scale


@triton.jit
def _layer_norm(x, weight, shift, out, means, scales, token_rows, eps, width: tl.constexpr,  # noqa: PLR0913
                block: tl.constexpr, has_shift: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = columns(block)
    inside = column < width
    value, mean, scale = normed_row(x, weight, shift, row, column, inside, token_rows, eps, width, has_shift)
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=inside)
    tl.store(means + row, mean)
    tl.store(scales + row, scale)


@triton.jit
def _layer_norm_backward(gradient, x, weight, means, scales, out, token_rows, width: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = columns(block)
    inside = column < width
    scale = tl.load(scales + row)
    normed = (tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32) - tl.load(means + row)) * scale
    normed = tl.where(inside, normed, 0.0)
    slope = tl.load(gradient + row * width + column, mask=inside, other=0.0).to(tl.float32)
    slope *= tl.load(weight + row // token_rows * width + column, mask=inside, other=0.0)
    mean = tl.sum(slope, axis=0) / width
    along = tl.sum(slope * normed, axis=0) / width
    value = scale * (slope - mean - normed * along)
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _turned(value, cos, sin, place, inside, block: tl.constexpr, forth: tl.constexpr):
    """`value` with each pair of channels turned to its position, or back from it."""
    first, second = tl.split(tl.reshape(value, (block // 2, 2)))
    other = tl.reshape(tl.join(second, first), (block,)) * tl.load(sin + place, mask=inside, other=0.0)
    value *= tl.load(cos + place, mask=inside, other=0.0)
    return value + other if forth else value - other


@triton.jit
def _rms_norm(x, weight, cos, sin, out, scales, tokens, eps, width: tl.constexpr, block: tl.constexpr,  # noqa: PLR0913
              head: tl.constexpr, is_rotated: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = columns(block)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / width + eps)
    value = value * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if is_rotated:
        value = _turned(value, cos, sin, row % tokens * head + column % head, inside, block, True)
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


@triton.jit
def _rms_norm_backward(gradient, x, weight, scales, cos, sin, out, tokens, width: tl.constexpr,  # noqa: PLR0913
                       block: tl.constexpr, head: tl.constexpr, is_rotated: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = columns(block)
    inside = column < width
    scale = tl.load(scales + row)
    normed = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32) * scale
    slope = tl.load(gradient + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if is_rotated:
        slope = _turned(slope, cos, sin, row % tokens * head + column % head, inside, block, False)
    slope *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    along = tl.sum(slope * normed, axis=0) / width
    value = scale * (slope - normed * along)
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=inside)


def layer_norm(x: Tensor, weight: Tensor, shift: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """See `rows.layer_norm_rows`; all contiguous."""
    rows, width = x.shape
    # Tensors of their own: what an operator returns must not share memory, nor begin off the alignment that inductor
    # counts with.
    out, means, scales = torch.empty_like(x), *(x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    block = triton.next_power_of_2(width)
    with on_its_device(x):
        _layer_norm[(rows,)](x, weight, weight if shift is None else shift, out, means, scales, rows // len(weight),
                             eps, width=width, block=block, has_shift=shift is not None, num_warps=warps(block))
    return out, means, scales


def layer_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """See `rows.layer_norm_rows_backward`; all contiguous."""
    rows, width = x.shape
    out, block = torch.empty_like(x), triton.next_power_of_2(width)
    with on_its_device(x):
        _layer_norm_backward[(rows,)](gradient, x, weight, means, scales, out, rows // len(weight), width=width,
                                      block=block, num_warps=warps(block))
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `rows.rms_norm_rows`; all contiguous."""
    rows, width = x.shape
    out, scales = torch.empty_like(x), x.new_empty(rows, dtype=torch.float32)
    block, (tokens, head) = triton.next_power_of_2(width), (1, 2) if cos is None else (cos.shape[0], cos.shape[-1])
    with on_its_device(x):
        _rms_norm[(rows,)](x, weight, weight if cos is None else cos, weight if sin is None else sin, out, scales,
                           tokens, eps, width=width, block=block, head=head, is_rotated=cos is not None,
                           num_warps=warps(block))
    return out, scales


def rms_norm_backward(gradient: Tensor, x: Tensor, weight: Tensor, scales: Tensor, cos: Tensor | None,
                      sin: Tensor | None) -> Tensor:
    """See `rows.rms_norm_rows_backward`; all contiguous."""
    rows, width = x.shape
    out, block = torch.empty_like(x), triton.next_power_of_2(width)
    tokens, head = (1, 2) if cos is None else (cos.shape[0], cos.shape[-1])
    with on_its_device(x):
        _rms_norm_backward[(rows,)](gradient, x, weight, scales, weight if cos is None else cos,
                                    weight if sin is None else sin, out, tokens, width=width, block=block,
                                    head=head, is_rotated=cos is not None, num_warps=warps(block))
    return out


def warps(block: int) -> int:
    """Warps of a program that holds `block` numbers; each thread reads 16 bytes at least."""
    return min(max(FEWEST_WARPS, block // NUMBERS_A_WARP), max(1, block // 256), 16)
