"""What stands between two convolutions of the VAE, done in one pass: bias, shortcut, norm, SiLU, room for the past.

Left to themselves these are five or more passes over activations of gigabytes: the bias, the sum with the shortcut, the
length of each place's channels, the division, the scale, SiLU, and the copy behind the frames of the past. Here a
convolution's result is read once, its sum written in its place where it is still needed, and the normalised copy
written to where the next convolution reads it.
"""

from dataclasses import dataclass
from functools import lru_cache

from jaxtyping import Float
import torch
from torch import Tensor
import torch.nn.functional as F

LAST = torch.channels_last_3d
EPSILON = 1e-12
"""Of `F.normalize`."""


@dataclass(frozen=True)
class Pending:
    """A convolution's result that still lacks its bias and the shortcut; its memory is ours to write into."""

    conv: Float[Tensor, "B C T H W"]
    bias: Float[Tensor, " C"] | None = None
    skipped: Float[Tensor, "B C T H W"] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return self.bias is None and self.skipped is None


@dataclass(frozen=True)
class Wanted:
    """What is to become of a pending result."""

    gamma: Float[Tensor, " C"] | None = None
    """Scale of the norm over the channels of each place; None: no norm."""
    activated: bool = False
    """SiLU after the norm."""
    room: int = 0
    """Frames left free in front of the copy, for those of the past."""
    copied: bool = True
    """Whether the copy is wanted at all, or the sum alone."""
    summed: bool = True
    """Whether the sum is wanted."""


def finish(pending: Pending, wanted: Wanted) -> tuple[Tensor | None, Tensor | None]:
    """(the sum, written over the convolution's result; the normalised copy behind `room` free frames)."""
    conv = pending.conv
    assert conv.is_contiguous(memory_format=LAST), "the rows of channels must lie side by side"
    if pending.is_whole and not wanted.copied:
        return conv, None
    batch, channels, frames, height, width = conv.shape
    copy = None
    if wanted.copied:
        copy = torch.empty((batch, channels, frames + wanted.room, height, width), dtype=conv.dtype,
                           device=conv.device, memory_format=LAST)
    run = _by_torch
    if conv.is_cuda and conv.dtype != torch.float64:
        from wan.memory.vae_rows_triton import finish_rows as run  # type: ignore[assignment]
    skipped = pending.skipped
    if skipped is not None and not skipped.is_contiguous(memory_format=LAST):
        skipped = skipped.contiguous(memory_format=LAST)
    run(conv, pending.bias, skipped, wanted.gamma, total=conv if wanted.summed and not pending.is_whole else None,
        normed=copy, activated=wanted.activated)
    return conv if wanted.summed else None, copy


@lru_cache
def why_not(device: torch.device) -> str:
    """Why the pass cannot be run as one kernel there; an empty text where it can, which is tried once."""
    if device.type != "cuda":
        return f"it is written for CUDA, not for {device.type}"
    x = torch.arange(2.0 * 8 * 3, device=device).sin().reshape(1, 8, 2, 3, 1).contiguous(memory_format=LAST)
    copies = [torch.zeros(1, 8, 3, 3, 1, device=device).contiguous(memory_format=LAST) for _ in range(2)]
    try:
        from wan.memory.vae_rows_triton import finish_rows

        for run, copy in zip((finish_rows, _by_torch), copies, strict=True):
            run(x, x[0, :, 0, 0, 0], x, x[0, :, 1, 1, 0], total=None, normed=copy, activated=True)
        torch.testing.assert_close(*copies)
    except Exception as error:  # noqa: BLE001 - no Triton, no C compiler, an unknown card: the plain path is there
        return " ".join(f"{type(error).__name__}: {error}".split()[:40])
    return ""


def _by_torch(conv: Tensor, bias: Tensor | None, skipped: Tensor | None, gamma: Tensor | None, *,
              total: Tensor | None, normed: Tensor | None, activated: bool) -> None:
    """As the kernel does, operation by operation; half precision is computed in float32 as there."""
    dtype = torch.promote_types(conv.dtype, torch.float32)
    value = conv.to(dtype)
    if bias is not None:
        value = value + bias.to(dtype)[:, None, None, None]
    if skipped is not None:
        value = value + skipped
    if total is not None:
        total.copy_(value)
    if normed is None:
        return
    if gamma is not None:
        value = F.normalize(value, dim=1, eps=EPSILON) * gamma.shape[0] ** 0.5 * gamma.to(dtype)[:, None, None, None]
    normed[:, :, normed.shape[2] - conv.shape[2]:] = F.silu(value) if activated else value
