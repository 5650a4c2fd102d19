"""Gradient checkpointing whose kept tensors wait in host memory: the input of each block goes there while the block
computes, and comes back ahead of the block's backward pass. Where it is asked for, so does what its self-attention
gave, which then is not computed again.

Both ways run on a stream beside the computing. On the device is at most what belongs to the block that computes and to
the one before or after it, and in the forward pass none else.
"""

from collections.abc import Callable, Collection, Sequence
import functools
from typing import Any
import weakref

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from wan.memory.recompute import RunBlock, recomputes_blocks, wrap
from wan.memory.transfers import Transfers, transfers_for
from wan.modules.attention import attend
from wan.modules.attention_halves import Results, again, keeping, kernel_of
from wan.modules.dit import WanDiT

LARGE = 256
"""What has fewer bytes than the block's input by so many times stays on the device."""


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


class _Kept:
    """A tensor of one pass: on the device, in host memory, or coming back."""

    def __init__(self, tensor: Tensor) -> None:
        self.on_device: Tensor | None = tensor
        self.shape, self.dtype, self.device = tensor.shape, tensor.dtype, tensor.device
        self.requires_grad = tensor.requires_grad
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

    def fetch(self, transfers: Transfers) -> Any:
        """Begin to copy it back, where it is not on the device; the moment at which it is."""
        if self.on_device is not None:
            return self._returned
        assert self._host is not None
        found = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        self._returned = transfers.copy(found.view(-1).view(torch.uint8), self._host, transfers.moment())
        self.on_device = found.requires_grad_(self.requires_grad)
        return self._returned

    def take(self, transfers: Transfers) -> Tensor:
        """The tensor for the recomputation, which is the last to need it on the device."""
        self.fetch(transfers)
        transfers.wait(self._returned)
        found = self.on_device
        assert found is not None
        if self._host is not None:
            self.on_device = None
        return found


class _KeptOfBlock:
    """What one block keeps in one pass: its input, and what its self-attention gave, once it has."""

    def __init__(self, tokens: Tensor, before: "_KeptOfBlock | None",
                 leave: Callable[[_Kept, int], None] | None) -> None:
        """`leave(tensor, place)` begins to copy it out; None where all stays on the device."""
        self.before = None if before is None else weakref.ref(before)
        """That of the block before; the backward pass needs it next."""
        self._leave = leave
        self.input, self._seen = self._kept(tokens, 0), list[_Kept]()

    def _kept(self, tensor: Tensor, place: int) -> _Kept:
        kept = _Kept(tensor)
        if self._leave is not None and (place == 0 or LARGE * tensor.nbytes >= self._input_bytes):
            self._leave(kept, place)
        return kept

    @property
    def _input_bytes(self) -> int:
        return self.input.shape.numel() * self.input.dtype.itemsize

    @property
    def tensors(self) -> Sequence[_Kept]:
        """All of it."""
        return [self.input, *self._seen]

    def results(self, transfers: Transfers, compute: Callable[[], Results]) -> Results:
        """What `compute` gives in the forward pass; from then on what it gave."""
        if self._seen:
            return tuple(one.take(transfers) for one in self._seen)
        found = compute()
        self._seen = [self._kept(one.detach(), place) for place, one in enumerate(found, 1)]
        return found


class ActivationOffload:
    """Recomputes a DiT's blocks from what waits in host memory. It takes the place of `recompute_blocks`."""

    def __init__(self, dit: WanDiT, *, attention: Collection[int] = (), transfers: Transfers | None = None) -> None:
        """Take part in every pass with gradients from now on; numbers do not change, dropout included.

        Of the blocks `attention` the result of self-attention is kept too, with every back end whose halves can be had
        (`attention_halves.kernel_of`); with another one it is computed again.
        """
        assert not recomputes_blocks(dit), "the blocks are recomputed already"
        self._last = len(dit.blocks) - 1
        self._attention = frozenset(attention)
        self._transfers = transfers or transfers_for(dit.device)
        self._pools: dict[int, _HostPool] = {}
        self._previous: _KeptOfBlock | None = None
        self._arriving: Any = None
        """Moment at which all that was brought back is there."""
        wrap(dit, self.recomputed)

    def recomputed(self, run_block: RunBlock, i: int, tokens: Tensor, inputs: Any) -> Tensor:
        """`run_block(i, tokens, inputs)`, recomputed in the backward pass."""
        if i == 0:
            self._begin()
        if not torch.is_grad_enabled():
            return run_block(i, tokens, inputs)
        # The backward pass begins with the last one.
        kept = _KeptOfBlock(tokens, self._previous if i > 0 else None, self._leave if i < self._last else None)
        # The empty tensor tells checkpoint the device whose random state it is to repeat: `kept` hides the other.
        result = checkpoint(self._run, run_block, [tokens], kept, tokens.new_empty(0), i, inputs, use_reentrant=False)
        del tokens
        self._let_go(kept if i < self._last else None)
        if result.requires_grad:
            result.register_hook(functools.partial(self._gradient_arrived, weakref.ref(kept)))
        return result

    recomputed.recomputes_blocks = True  # type: ignore[attr-defined]

    def _run(self, run_block: RunBlock, given: list[Tensor], kept: _KeptOfBlock, _: Tensor, i: int, inputs: Any
             ) -> Tensor:
        # `given` holds the input in the forward pass alone; checkpoint keeps the empty list.
        tokens = given.pop() if given else kept.input.take(self._transfers)
        if i not in self._attention:
            return run_block(i, tokens, inputs)
        with keeping(functools.partial(self._look, [kept])):
            return run_block(i, tokens, inputs)

    def _look(self, turn: list[_KeptOfBlock], q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> Tensor:
        """The first self-attention of a run is kept, any other (of a condition with blocks of its own) is not."""
        kernel = kernel_of(backend, q, k) if turn else None
        if kernel is None:
            return attend(q, k, v, backend=backend)
        return again(kernel, functools.partial(turn.pop().results, self._transfers), q, k, v)

    def _begin(self) -> None:
        """A pass begins: what one that was broken off has left is let go, behind the copies from and to it."""
        self._let_go(None)
        self._transfers.wait(self._arriving)
        self._arriving = None

    def _leave(self, kept: _Kept, place: int) -> None:
        """Each place has a pool of its own, in which all buffers are of about one size."""
        kept.leave(self._transfers, self._pools.setdefault(place, _HostPool(self._transfers)))

    def _let_go(self, kept: _KeptOfBlock | None) -> None:
        """Drop what belongs to the block before, whose copies have had a block's computing to finish."""
        if self._previous is not None:
            for one in self._previous.tensors:
                one.drop(self._transfers)
        self._previous = kept

    def _gradient_arrived(self, kept: "weakref.ref[_KeptOfBlock]", gradient: Tensor) -> None:
        """Bring what belongs to the block whose turn it is, and to the one after it in the backward pass."""
        now = kept()
        if now is None:
            return
        for block in self._following(now):
            for one in block.tensors:
                self._arriving = one.fetch(self._transfers) or self._arriving

    def _following(self, now: _KeptOfBlock) -> Sequence[_KeptOfBlock]:
        before = None if now.before is None else now.before()
        return [now] if before is None else [now, before]
