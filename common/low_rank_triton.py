"""The kernel of `common.low_rank` in Triton: each program adds a tile of the low-rank product to a tile of the base."""

from torch import Tensor
import triton
import triton.language as tl

from common.devices import on_its_device

ROWS, COLUMNS = 64, 128
"""Tile of a program."""


@triton.jit
def _add(base, low, up, out, rows, columns, strength, rank: tl.constexpr, width: tl.constexpr,  # noqa: PLR0913
         height: tl.constexpr, length: tl.constexpr):
    row = tl.program_id(1) * height + tl.arange(0, height)
    column = tl.program_id(0) * length + tl.arange(0, length)
    inner = tl.arange(0, width)
    of_rows = tl.load(low + row.to(tl.int64)[:, None] * rank + inner[None, :],
                      mask=(row < rows)[:, None] & (inner < rank)[None, :], other=0.0)
    of_columns = tl.load(up + column[None, :] * rank + inner[:, None],
                         mask=(column < columns)[None, :] & (inner < rank)[:, None], other=0.0)
    product = tl.dot(of_rows, of_columns, out_dtype=tl.float32)
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    value = tl.load(base + place, mask=inside, other=0.0).to(tl.float32) + product * strength
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


def add(base: Tensor, low: Tensor, up: Tensor, strength: float, out: Tensor) -> Tensor:
    """`out` = base + strength · low upᵀ of contiguous `M O`, `M r`, `O r`; `out` may be the base. Returns it."""
    rows, columns = base.shape
    rank = low.shape[1]
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS))
    with on_its_device(base):
        _add[grid](base, low.contiguous(), up.contiguous(), out, rows, columns, strength, rank=rank,
                   width=max(16, triton.next_power_of_2(rank)), height=ROWS, length=COLUMNS, num_warps=8)
    return out
