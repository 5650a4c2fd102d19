"""What stands between two convolutions of the VAE, done in one pass: bias, shortcut, norm, SiLU, room for the past.

Left to themselves these are five or more passes over activations of gigabytes: the bias, the sum with the shortcut, the
length of each place's channels, the division, the scale, SiLU, and the copy behind the frames of the past. Here a
convolution's result is read once, its sum written in its place where it is still needed, and the normalised copy
written to where the next convolution reads it.
"""

from dataclasses import dataclass, replace
import functools

from jaxtyping import Float
import torch
from torch import Tensor
import torch.nn.functional as F

from common.kernels import reason_against

LAST = torch.channels_last_3d
EPSILON = 1e-12
"""Of `F.normalize`."""


@dataclass(frozen=True)
class Pending:
    """A convolution's result that still lacks its bias and the shortcut; its memory is ours to write into."""

    conv: Float[Tensor, "B C T H W"]
    bias: Float[Tensor, " C"] | None = None
    skipped: Float[Tensor, "B C T H W"] | None = None
    phased: bool = False
    """Whether `conv` is ``B 4C T H/2+1 W/2+1``: the results for even and odd rows and columns as channels, those for
    odd ones a place further."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return self.bias is None and self.skipped is None and not self.phased

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Of the whole result."""
        batch, channels, frames, height, width = self.conv.shape
        if self.phased:
            channels, height, width = channels // 4, 2 * (height - 1), 2 * (width - 1)
        return batch, channels, frames, height, width


@dataclass(frozen=True)
class Wanted:
    """What is to become of a pending result."""

    gamma: Float[Tensor, " C"] | None = None
    """Scale of the norm over the channels of each place; None: no norm."""
    activated: bool = False
    """SiLU after the norm."""
    room: int = 0
    """Frames left free in front of the copy, for those of the past."""
    padded: bool = False
    """Whether the copy has a row and a column of zeros more, below and to the right; not with `room`."""
    copied: bool = True
    """Whether the copy is wanted at all, or the sum alone."""
    summed: bool = True
    """Whether the sum is wanted."""


SUM = Wanted(copied=False)


def finish(pending: Pending, wanted: Wanted) -> tuple[Tensor | None, Tensor | None]:
    """(the sum, in the convolution's place where it fits; the copy: normalised, activated and placed as `wanted`)."""
    conv, dtype, device = pending.conv, pending.conv.dtype, pending.conv.device
    assert conv.is_contiguous(memory_format=LAST), "the rows of channels must lie side by side"
    if pending.is_whole and not wanted.copied:
        return conv, None
    batch, channels, frames, height, width = pending.shape
    total = copy = None
    if wanted.summed:
        total = torch.empty(pending.shape, dtype=dtype, device=device, memory_format=LAST) if pending.phased else conv
    if wanted.copied:
        more = int(wanted.padded)
        copy = torch.empty((batch, channels, frames + wanted.room, height + more, width + more), dtype=dtype,
                           device=device, memory_format=LAST)
        if wanted.padded:
            copy[..., -1, :].zero_()
            copy[..., -1].zero_()
    if pending.skipped is not None and not pending.skipped.is_contiguous(memory_format=LAST):
        pending = replace(pending, skipped=pending.skipped.contiguous(memory_format=LAST))
    run = _by_torch
    if conv.is_cuda and dtype != torch.float64:
        from wan.memory.vae_rows_triton import finish_rows as run
    run(pending, wanted, None if pending.is_whole else total, copy)
    return total, copy


@functools.cache
def why_not(device: torch.device) -> str:
    """Why the pass cannot be run as one kernel there; an empty text where it can, which is tried once."""
    if device.type != "cuda":
        return f"it is written for CUDA, not for {device.type}"

    def attempt() -> str:
        from wan.memory.vae_rows_triton import finish_rows

        x = torch.arange(2.0 * 8 * 3, device=device).sin().reshape(1, 8, 2, 3, 1).contiguous(memory_format=LAST)
        copies = [torch.zeros(1, 8, 3, 3, 1, device=device).contiguous(memory_format=LAST) for _ in range(2)]
        pending = Pending(x, x[0, :, 0, 0, 0].contiguous(), x)
        for run, copy in zip((finish_rows, _by_torch), copies, strict=True):
            run(pending, Wanted(x[0, :, 1, 1, 0].contiguous(), activated=True, room=1), None, copy)
        torch.testing.assert_close(*copies)
        return ""

    return reason_against(attempt)


def _by_torch(pending: Pending, wanted: Wanted, total: Tensor | None, copy: Tensor | None) -> None:
    """As the kernel does, operation by operation; half precision is computed in float32 as there."""
    dtype = torch.promote_types(pending.conv.dtype, torch.float32)
    value = (_interleaved(pending) if pending.phased else pending.conv).to(dtype)
    if pending.bias is not None:
        value = value + pending.bias.to(dtype)[:, None, None, None]
    if pending.skipped is not None:
        value = value + pending.skipped
    if total is not None:
        total.copy_(value)
    if copy is None:
        return
    gamma, (_, channels, _, height, width) = wanted.gamma, pending.shape
    if gamma is not None:
        value = F.normalize(value, dim=1, eps=EPSILON) * channels**0.5 * gamma.to(dtype)[:, None, None, None]
    copy[:, :, wanted.room:, :height, :width] = F.silu(value) if wanted.activated else value


def _interleaved(pending: Pending) -> Tensor:
    whole, conv = torch.empty(pending.shape, dtype=pending.conv.dtype, device=pending.conv.device), pending.conv
    for phase, part in enumerate(conv.chunk(4, dim=1)):
        row, column = divmod(phase, 2)
        whole[..., row::2, column::2] = part[..., row:part.shape[3] - 1 + row, column:part.shape[4] - 1 + column]
    return whole
