"""The kernel that quantises rows, in Triton: each program holds a row, reads it once and writes it in eight bits."""

import torch
from torch import Tensor
import triton
import triton.language as tl

from wan.modules.rows_triton import on_its_device, warps


@triton.jit
def _quantise(x, out, scales, largest, smallest, width: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, block)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value), axis=0) / largest, smallest)
    # Nothing is beyond the largest number but by a rounding; a number that is none stays none.
    tl.store(out + row * width + column, (value / scale).to(out.dtype.element_ty), mask=inside)
    tl.store(scales + row, scale)


def quantise(x: Tensor, out: Tensor, largest: float, smallest: float) -> Tensor:
    """Write `x`, ``M K`` and contiguous, to `out`, each row divided by its scale, so that its largest number is
    `largest`; return the scales, ``M 1``, none below `smallest`.
    """
    rows, width = x.shape
    scales = x.new_empty((rows, 1), dtype=torch.float32)
    block = triton.next_power_of_2(width)
    with on_its_device(x):
        _quantise[(rows,)](x, out, scales, largest, smallest, width=width, block=block, num_warps=warps(block))
    return scales
