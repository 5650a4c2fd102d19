"""base + strength · low upᵀ without a second tensor of the base's size: the part of a LoRA at a layer's output.

torch's own `addmm` copies the base first (seen in profiles on an H200), which costs as much as the sum itself. On CUDA
one kernel reads the base, adds, and writes; elsewhere `addmm` does it. Rounded once in either case.
"""

import functools
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor

from common.kernels import reason_against
from common.operators import NAMESPACE, operator

LARGEST_RANK = 256
"""Ranks above are left to `addmm`: the product is no longer small beside the reading."""
HALF = (torch.bfloat16, torch.float16)


def _like_base(base: Tensor, low: Tensor, up: Tensor, strength: float) -> Tensor:
    return torch.empty_like(base, memory_format=torch.contiguous_format)


@operator("(Tensor base, Tensor low, Tensor up, float strength) -> Tensor", _like_base)
def add_low_rank(base: Tensor, low: Tensor, up: Tensor, strength: float) -> Tensor:
    """base + strength · low upᵀ of `M O`, `M r`, `O r`, in a new tensor."""
    if _has_kernel(base, low):
        from common.low_rank_triton import add
        return add(base, low, up, strength, torch.empty_like(base))
    return torch.addmm(base, low, up.t(), alpha=strength)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
    _, low, up, ctx.strength = inputs
    ctx.save_for_backward(low, up)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    low, up = ctx.saved_tensors
    return gradient, *low_rank_gradients(gradient, low, up, ctx.strength), None


torch.library.register_autograd(f"{NAMESPACE}::add_low_rank", _backward, setup_context=_keep)


def low_rank_gradients(gradient: Float[Tensor, "M O"], low: Float[Tensor, "M r"], up: Float[Tensor, "O r"],
                       strength: float) -> tuple[Float[Tensor, "M r"], Float[Tensor, "O r"]]:
    """Gradients of `low` and `up`; a strength of 1 costs no pass."""
    of_low, of_up = gradient @ up, gradient.t() @ low
    return (of_low, of_up) if strength == 1 else (of_low * strength, of_up * strength)


def add_low_rank_in_place(base: Float[Tensor, "M O"], low: Float[Tensor, "M r"], up: Float[Tensor, "O r"],
                          strength: float) -> None:
    """base += strength · low upᵀ; autograd does not see it."""
    if _has_kernel(base, low):
        from common.low_rank_triton import add
        add(base, low, up, strength, base)
    else:
        base.addmm_(low, up.t(), alpha=strength)


def _has_kernel(base: Tensor, low: Tensor) -> bool:
    return (base.is_cuda and base.dtype in HALF and low.dtype == base.dtype and base.is_contiguous()
            and low.shape[1] <= LARGEST_RANK and not why_not(base.device, base.dtype, low.shape[1]))


@functools.cache
def why_not(device: torch.device, dtype: torch.dtype, rank: int) -> str:
    """Why the kernel cannot be had there; an empty text where it can. A high rank may not fit on a small GPU."""
    def attempt() -> str:
        from common.low_rank_triton import add

        base, low, up = (torch.ones(size, device=device, dtype=dtype) for size in ((3, 5), (3, rank), (5, rank)))
        found = add(base, low, up, 1 / rank, torch.empty_like(base)).float().mean().item()
        return "" if found == 2 else f"it gave {found} for 2"

    return reason_against(attempt, f"LoRA of rank {rank} is added without its own kernel, a little slower")
