"""The kernels of `fp8_rows` in Triton: each program holds a row, reads it once and writes it in eight bits.

Between a norm or GELU and its eight bits nothing is rounded to 16.
"""

import math

import torch
from torch import Tensor
import triton
import triton.language as tl

from common.devices import on_its_device
from wan.memory.fp8 import Format
from wan.modules.block import CUBIC, TWO_SQRT_2_BY_PI
from wan.modules.rows_triton import columns, normed_row, warps

FIRST = -TWO_SQRT_2_BY_PI / math.log(2)
"""Factor of x in the exponent of GELU, to the base 2."""


@triton.jit
def _store(value, out, scales, factor, row, column, inside, largest, smallest, width: tl.constexpr,  # noqa: PLR0913
           has_factor: tl.constexpr):
    scale = tl.maximum(tl.max(tl.abs(value), axis=0) / largest, smallest)
    # Nothing is beyond the largest number but by a rounding; a number that is none stays none.
    tl.store(out + row * width + column, (value * (1.0 / scale)).to(out.dtype.element_ty), mask=inside)
    if has_factor:
        scale *= tl.load(factor)
    tl.store(scales + row, scale)


@triton.jit
def _quantise(x, out, scales, factor, largest, smallest, width: tl.constexpr, block: tl.constexpr,  # noqa: PLR0913
              has_factor: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = columns(block, 8)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    _store(value, out, scales, factor, row, column, inside, largest, smallest, width, has_factor)


@triton.jit
def _layer_norm(x, weight, shift, out, scales, factor, normed, means, deviations, token_rows, eps,  # noqa: PLR0913
                largest, smallest, width: tl.constexpr, block: tl.constexpr, has_shift: tl.constexpr,
                has_factor: tl.constexpr, keeps: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = columns(block)
    inside = column < width
    value, mean, deviation = normed_row(x, weight, shift, row, column, inside, token_rows, eps, width, has_shift)
    if keeps:
        tl.store(normed + row * width + column, value.to(x.dtype.element_ty), mask=inside)
        tl.store(means + row, mean)
        tl.store(deviations + row, deviation)
    _store(value, out, scales, factor, row, column, inside, largest, smallest, width, has_factor)


@triton.jit
def _gelu(x, out, scales, factor, kept, largest, smallest, first, third, width: tl.constexpr,  # noqa: PLR0913
          block: tl.constexpr, has_factor: tl.constexpr, keeps: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = columns(block, 8)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    value = value / (1.0 + tl.exp2(value * (first + third * value * value)))
    if keeps:
        tl.store(kept + row * width + column, value.to(x.dtype.element_ty), mask=inside)
    _store(value, out, scales, factor, row, column, inside, largest, smallest, width, has_factor)


def _made(x: Tensor, written: Format) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, dtype=written.dtype), x.new_empty((x.shape[0], 1), dtype=torch.float32)


def quantise(x: Tensor, written: Format, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    """`x`, ``M K`` and contiguous, each row divided by its scale as `written` says; and the scales, ``M 1``,
    times `factor`.
    """
    rows, width = x.shape
    out, scales = _made(x, written)
    block = triton.next_power_of_2(width)
    with on_its_device(x):
        _quantise[(rows,)](x, out, scales, scales if factor is None else factor, written.largest,
                           written.smallest_scale, width=width, block=block, has_factor=factor is not None,
                           num_warps=warps(block))
    return out, scales


def layer_norm(x: Tensor, weight: Tensor, shift: Tensor | None, eps: float, written: Format, factor: Tensor | None, *,
               keeps: bool) -> tuple[Tensor, ...]:
    """`quantise` of a layer norm as in `rows.layer_norm_rows`, whose three results follow where `keeps`."""
    rows, width = x.shape
    out, scales = _made(x, written)
    kept = (torch.empty_like(x), *(x.new_empty(rows, dtype=torch.float32) for _ in range(2))) if keeps else ()
    block = triton.next_power_of_2(width)
    with on_its_device(x):
        _layer_norm[(rows,)](x, weight, weight if shift is None else shift, out, scales,
                             scales if factor is None else factor, *(kept or (x, scales, scales)),
                             rows // len(weight), eps, written.largest, written.smallest_scale, width=width,
                             block=block, has_shift=shift is not None, has_factor=factor is not None, keeps=keeps,
                             num_warps=warps(block))
    return out, scales, *kept


def gelu(x: Tensor, written: Format, factor: Tensor | None, *, keeps: bool) -> tuple[Tensor, ...]:
    """`quantise` of GELU in its tanh form: x / (1 + 2^(first x + third x³)), which follows where `keeps`."""
    rows, width = x.shape
    out, scales = _made(x, written)
    kept = (torch.empty_like(x),) if keeps else ()
    block = triton.next_power_of_2(width)
    with on_its_device(x):
        _gelu[(rows,)](x, out, scales, scales if factor is None else factor, *(kept or (x,)), written.largest,
                       written.smallest_scale, FIRST, FIRST * CUBIC, width=width, block=block,
                       has_factor=factor is not None, keeps=keeps, num_warps=warps(block))
    return out, scales, *kept
