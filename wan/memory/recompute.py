"""What stands around `WanDiT.run_block`, and recomputing blocks from outside of all of it.

From the inside out: however a block is run, block swap (`swap.py`), then one that recomputes, the one here or the one
that also keeps the blocks' inputs in host memory (`offload.py`). So a recomputed block fetches its weights again.
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


def recompute_blocks(dit: WanDiT) -> None:
    """Recompute every block, together with the hooks in and around it, when gradients are wanted.

    Wraps `dit.run_block`; numbers do not change, dropout included.
    """
    if not recomputes_blocks(dit):
        wrap(dit, _recomputed)


def _recomputed(run_block: RunBlock, *args: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return run_block(*args)
    return checkpoint(run_block, *args, use_reentrant=False)


_recomputed.recomputes_blocks = True  # type: ignore[attr-defined]


def recomputes_blocks(dit: nn.Module) -> bool:
    """Whether what wraps `run_block` recomputes blocks: a wrapper that does has the attribute `recomputes_blocks`."""
    return any(getattr(one, "recomputes_blocks", False) for one in wrappers(dit))


def wrap(dit: WanDiT, wrapper: Callable[..., Tensor]) -> None:
    """Have `dit.run_block(i, tokens, inputs)` call `wrapper(before, i, tokens, inputs)`, `before` being what it was."""
    dit.run_block = functools.partial(wrapper, dit.run_block)  # type: ignore[method-assign]


def wrappers(dit: nn.Module) -> Iterator[Callable[..., Tensor]]:
    """What wraps `run_block`, the outermost first."""
    one = vars(dit).get("run_block")
    while isinstance(one, functools.partial):
        yield one.func
        one = one.args[0]
