"""Gradient checkpointing of the DiT's blocks: activations are recomputed in the backward pass.

What wraps `WanDiT.run_block`, from the inside out: block swap (`swap.py`), then one that recomputes, this one or the
one that also keeps the blocks' inputs in host memory (`offload.py`). So a recomputed block fetches its weights again.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from wan.modules.dit import WanDiT

RunBlock = Callable[..., Tensor]
"""`WanDiT.run_block`, or what wraps it: (i, tokens, inputs) → tokens."""


def enable_checkpointing(dit: WanDiT) -> None:
    """Recompute every block, together with the hooks in and around it, when gradients are wanted.

    Wraps `dit.run_block`; numbers do not change, dropout included.
    """
    if not is_checkpointing(dit):
        wrap(dit, _recomputed)


def _recomputed(run_block: RunBlock, *args: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return run_block(*args)
    return checkpoint(run_block, *args, use_reentrant=False)


_recomputed.recomputes_blocks = True  # type: ignore[attr-defined]


def disable_checkpointing(dit: WanDiT) -> None:
    """Undo `enable_checkpointing`."""
    if is_checkpointing(dit):
        unwrap(dit)


def is_checkpointing(dit: nn.Module) -> bool:
    """Whether what wraps `run_block` recomputes blocks: a wrapper that does has the attribute `recomputes_blocks`."""
    return any(getattr(one, "recomputes_blocks", False) for one in wrappers(dit))


def wrap(dit: WanDiT, wrapper: Callable[..., Tensor]) -> None:
    """Have `dit.run_block(i, tokens, inputs)` call `wrapper(before, i, tokens, inputs)`, `before` being what it was."""
    dit.run_block = functools.partial(wrapper, dit.run_block)  # type: ignore[method-assign]


def unwrap(dit: WanDiT) -> None:
    """Take the outermost wrapper off."""
    before = vars(dit)["run_block"].args[0]
    if isinstance(before, functools.partial):
        dit.run_block = before  # type: ignore[method-assign]
    else:
        del dit.run_block  # the class's own method shows again


def wrappers(dit: nn.Module) -> Iterator[Callable[..., Tensor]]:
    """What wraps `run_block`, the outermost first."""
    one = vars(dit).get("run_block")
    while isinstance(one, functools.partial):
        yield one.func
        one = one.args[0]
