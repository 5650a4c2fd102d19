"""Gradient checkpointing whose kept tensors wait in host memory: the input of each block goes there while the block
computes, and comes back ahead of the block's backward pass.

Both ways run on a stream beside the computing. On the device are at most the input of the block that computes, that of
the one before or after it, and in the forward pass none else.
"""

from collections.abc import Sequence
import functools
from typing import Any
import weakref

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wan.memory.recompute import RunBlock, recomputes_blocks, wrap
from wan.memory.transfers import Transfers, transfers_for
from wan.modules.dit import WanDiT


class _HostPool:
    """Host memory that is used again from step to step; as many buffers as were ever used at once."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._free: list[Tensor] = []

    def take(self, nbytes: int) -> Tensor:
        """A buffer of at least `nbytes`; a smaller one that is free is given up for a new one."""
        self._free.sort(key=Tensor.numel)
        for place, buffer in enumerate(self._free):
            if buffer.numel() >= nbytes:
                return self._free.pop(place)
        if self._free:
            self._free.pop()
        return self._transfers.host(nbytes)

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back. The next copy into it comes behind the last one out of it: they share a stream."""
        self._free.append(buffer)


class _KeptInput:
    """The input of one block in one pass: on the device, in host memory, or coming back."""

    def __init__(self, tokens: Tensor, before: "_KeptInput | None") -> None:
        self.on_device: Tensor | None = tokens
        self.before = None if before is None else weakref.ref(before)
        """That of the block before; the backward pass needs it next."""
        self.shape, self.dtype, self.device = tokens.shape, tokens.dtype, tokens.device
        self.requires_grad = tokens.requires_grad
        self._source: Tensor | None = None
        self._host: Tensor | None = None
        self._left: Any = None
        self._returned: Any = None

    def leave(self, transfers: Transfers, pool: _HostPool) -> None:
        """Begin to copy it out."""
        assert self.on_device is not None
        # The first block's input is a transposed view; its copy must live as long as the side stream reads it.
        source = self._source = self.on_device.detach().contiguous().view(-1).view(torch.uint8)
        host = pool.take(source.numel())
        weakref.finalize(self, pool.give, host).atexit = False
        self._host = host[:source.numel()]
        self._left = transfers.copy(self._host, source, transfers.moment())

    def drop(self, transfers: Transfers) -> None:
        """Let go of the tensor on the device, once its copy is made."""
        if self._host is not None:
            transfers.wait(self._left)
            self.on_device = self._source = None

    def fetch(self, transfers: Transfers) -> None:
        """Begin to copy it back, where it is not on the device."""
        if self.on_device is not None:
            return
        assert self._host is not None
        found = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        self._returned = transfers.copy(found.view(-1).view(torch.uint8), self._host, transfers.moment())
        self.on_device = found.requires_grad_(self.requires_grad)

    def take(self, transfers: Transfers) -> Tensor:
        """The tensor for the recomputation, which is the last to need it on the device."""
        self.fetch(transfers)
        transfers.wait(self._returned)
        found = self.on_device
        assert found is not None
        if self._host is not None:
            self.on_device = None
        return found


class ActivationOffload:
    """Recomputes a DiT's blocks from inputs that wait in host memory. It takes the place of `recompute_blocks`."""

    def __init__(self, dit: WanDiT, *, transfers: Transfers | None = None) -> None:
        """Take part in every pass with gradients from now on; numbers do not change, dropout included."""
        assert not recomputes_blocks(dit), "the blocks are recomputed already"
        self._last = len(dit.blocks) - 1
        self._transfers = transfers or transfers_for(dit.device)
        self._pool = _HostPool(self._transfers)
        self._previous: _KeptInput | None = None
        wrap(dit, self.recomputed)

    def recomputed(self, run_block: RunBlock, i: int, tokens: Tensor, inputs: Any) -> Tensor:
        """`run_block(i, tokens, inputs)`, recomputed in the backward pass."""
        if not torch.is_grad_enabled():
            return run_block(i, tokens, inputs)
        kept = _KeptInput(tokens, self._previous if i > 0 else None)
        if i < self._last:  # the backward pass begins with the last one
            kept.leave(self._transfers, self._pool)
        # The empty tensor tells checkpoint the device whose random state it is to repeat: `kept` hides the other.
        result = checkpoint(self._run, run_block, [tokens], kept, tokens.new_empty(0), i, inputs, use_reentrant=False)
        del tokens
        self._let_go(kept if i < self._last else None)
        if result.requires_grad:
            result.register_hook(functools.partial(self._gradient_arrived, weakref.ref(kept)))
        return result

    recomputed.recomputes_blocks = True  # type: ignore[attr-defined]

    def _run(self, run_block: RunBlock, given: list[Tensor], kept: _KeptInput, _: Tensor, i: int, inputs: Any
             ) -> Tensor:
        # `given` holds the input in the forward pass alone; checkpoint keeps the empty list.
        return run_block(i, given.pop() if given else kept.take(self._transfers), inputs)

    def _let_go(self, kept: _KeptInput | None) -> None:
        """Drop the input before, whose copy has had a block's computing to finish."""
        if self._previous is not None:
            self._previous.drop(self._transfers)
        self._previous = kept

    def _gradient_arrived(self, kept: "weakref.ref[_KeptInput]", gradient: Tensor) -> None:
        """Bring the input of the block whose turn it is, and of the one after it in the backward pass."""
        now = kept()
        if now is None:
            return
        for one in self._following(now):
            one.fetch(self._transfers)

    def _following(self, now: _KeptInput) -> Sequence[_KeptInput]:
        before = None if now.before is None else now.before()
        return [now] if before is None else [now, before]
