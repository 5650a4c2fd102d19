"""Gradient checkpointing of the DiT's blocks: activations are recomputed in the backward pass."""

from collections.abc import Callable
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wan.modules.dit import WanDiT


def enable_checkpointing(dit: WanDiT) -> None:
    """Recompute every block, together with the hooks in and around it, when gradients are wanted.

    Wraps `dit.run_block`; numbers do not change, dropout included.
    """
    if is_checkpointing(dit):
        return
    dit.run_block = functools.partial(_recomputed, dit.run_block)  # type: ignore[method-assign]


def _recomputed(run_block: Callable[..., Tensor], *args: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return run_block(*args)
    return checkpoint(run_block, *args, use_reentrant=False)


def disable_checkpointing(dit: WanDiT) -> None:
    """Undo `enable_checkpointing`."""
    if is_checkpointing(dit):
        del dit.run_block


def is_checkpointing(dit: nn.Module) -> bool:
    """Whether `enable_checkpointing` is in force."""
    return "run_block" in vars(dit)
