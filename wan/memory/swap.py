"""Block swap: frozen blocks whose weights lie in host memory and come to the device just before they are needed.

One way only, because frozen weights never change: nothing is copied back. A block is one flat buffer in page-locked
host memory; a ring of equal buffers on the device takes the next blocks in, on a stream of its own, while others
compute: forward in order, backward in reverse. Outside the ring nothing of a swapped block is on the device. What is
trained (LoRA, conditions) stays there.

In training the blocks must be recomputed in the backward pass (gradient checkpointing), because autograd would keep
weights from the forward pass for the gradient of a block's input, and their place would be taken by then. Such a
keeping is refused in words, and would end in autograd's own error (the version of what is overwritten rises), never in
a wrong gradient. Between its recomputation and the gradient of its input a block's place in the ring is locked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from common.errors import ConfigError
from wan.memory.recompute import RunBlock, recomputes_blocks, wrap
from wan.memory.transfers import Transfers, transfers_for
from wan.modules.dit import WanDiT

ALIGNMENT = 256
"""Bytes that each tensor of a flat buffer begins at a multiple of, as CUDA's own allocations do."""
RING = 2
"""Buffers on the device: one is computed with while the other is filled."""


class Part(NamedTuple):
    """A parameter or buffer of a block, and where it lies in the block's flat buffer."""

    tensor: Tensor
    offset: int
    shape: torch.Size
    dtype: torch.dtype

    def within(self, flat: Tensor) -> Tensor:
        """Its view in a flat buffer."""
        nbytes = self.shape.numel() * self.dtype.itemsize
        return flat[self.offset:self.offset + nbytes].view(self.dtype).view(self.shape)


@dataclass
class _Slot:
    """One buffer of the ring."""

    buffer: Tensor
    block: int | None = None
    is_locked: bool = False
    """Whether what it holds is being used."""
    arrived: Any = None
    """Moment at which the block's copy is done."""
    freed: Any = None
    """Moment at which the computing with the block is done."""


class BlockSwap:
    """Keeps the weights of some blocks of a DiT in host memory. Attach it before what recomputes (`recompute.py`)."""

    def __init__(self, dit: WanDiT, count: int, *, ring: int = RING, transfers: Transfers | None = None) -> None:
        """Move `count` of the blocks out, evenly spread, and take part in every forward and backward pass from now on.

        Their weights may lie on the device or in host memory already. `ring` buffers are made on the DiT's device, no
        more than `count`. ConfigError where there are not so many blocks, or where one of them is trained.
        """
        if not 1 <= count <= len(dit.blocks) or ring < 1:
            raise ConfigError(f"{count} of {len(dit.blocks)} blocks cannot be swapped through {ring} buffers. Swap 1 "
                              f"to {len(dit.blocks)} blocks (--blocks_to_swap) through at least 1 "
                              "(--block_swap_ring_size).")
        assert not recomputes_blocks(dit), "swap first, then recompute: a recomputed block must fetch its weights"
        self.dit = dit
        self.blocks = spread(count, len(dit.blocks))
        self._transfers = transfers or transfers_for(dit.device)
        self._parts: dict[int, list[Part]] = {}
        self._hosts: dict[int, Tensor] = {}
        for i in self.blocks:
            self._parts[i] = parts_of(dit.blocks[i], f"blocks.{i}")
            self._hosts[i] = self._packed(self._parts[i])
        nbytes = max(host.numel() for host in self._hosts.values())
        buffers = torch.empty(min(ring, count), nbytes, dtype=torch.uint8, device=dit.device)
        # The allocator may have given memory that earlier work of the computing stream still reads.
        self._ring = [_Slot(buffer, freed=self._transfers.moment()) for buffer in buffers]
        wrap(dit, self._run)

    @property
    def host_bytes(self) -> int:
        """Host memory that the swapped blocks take."""
        return sum(host.numel() for host in self._hosts.values())

    @property
    def ring_bytes(self) -> int:
        """Memory of the ring on the device."""
        return sum(slot.buffer.numel() for slot in self._ring)

    @torch.no_grad()
    def _packed(self, parts: Sequence[Part]) -> Tensor:
        """The block's tensors in one flat host buffer, which they are views of from now on."""
        host = self._transfers.host(flat_bytes([(part.shape, part.dtype) for part in parts]))
        for part in parts:
            view = part.within(host)
            view.copy_(part.tensor)
            part.tensor.data = view
        return host

    def _run(self, run_block: RunBlock, i: int, *args: Any) -> Tensor:
        # A pass of the autograd engine is running only where a checkpoint calls the block again.
        is_again = torch._C._current_graph_task_id() != -1
        if not is_again:
            self._unlock(range(len(self.dit.blocks)))  # what an earlier backward pass ended with, or broke off
        if i in self._parts:
            self._need(i)
            self._prefetch(self._ahead(i, is_again))
        result = run_block(i, *args)
        if not is_again:
            self._after_forward(i, result)
        return result

    def _after_forward(self, i: int, result: Tensor) -> None:
        if i in self._parts:
            if result.requires_grad and not recomputes_blocks(self.dit):
                raise ConfigError(f"block {i} is swapped, and a gradient is wanted through it without recomputing it: "
                                  "its weights would be gone by then. Use --gradient_checkpointing with "
                                  "--blocks_to_swap.")
            self._unlock([i])
            self._prefetch(self._ahead(i, is_again=False))
        if result.requires_grad:
            result.register_hook(functools.partial(self._gradient_arrived, i))

    def _gradient_arrived(self, i: int, gradient: Tensor) -> None:
        """The gradient of block `i`'s result is there: the blocks behind it are done with, and it is the next."""
        self._unlock(range(i + 1, len(self.dit.blocks)))
        self._prefetch([j for j in reversed(self.blocks) if j <= i])

    def _ahead(self, i: int, is_again: bool) -> list[int]:
        """Swapped blocks in the order in which they will be needed after `i`."""
        if is_again:
            return [j for j in reversed(self.blocks) if j < i]
        ahead = [j for j in self.blocks if j > i]
        # After a forward pass with gradients the last blocks come first; otherwise the next pass begins in front.
        return ahead if torch.is_grad_enabled() else ahead + [j for j in self.blocks if j < i]

    def _need(self, i: int) -> None:
        """Have the computing find block `i`'s weights on the device, and keep them there until they are unlocked."""
        slot = next((slot for slot in self._ring if slot.block == i), None)
        if slot is None:
            slot = next((slot for slot in self._ring if not slot.is_locked), None)
            assert slot is not None, "two blocks are in use at the same time"
            self._fetch(i, slot)
        self._transfers.wait(slot.arrived)
        slot.is_locked = True
        for part in self._parts[i]:
            part.tensor.data = part.within(slot.buffer)

    def _prefetch(self, upcoming: Sequence[int]) -> None:
        """Begin to bring the next blocks, into buffers that hold none of them and that nothing uses."""
        upcoming = upcoming[:len(self._ring)]
        for i in upcoming:
            if any(slot.block == i for slot in self._ring):
                continue
            slot = next((one for one in self._ring if not one.is_locked and one.block not in upcoming), None)
            if slot is None:
                return
            self._fetch(i, slot)

    @torch.no_grad()
    def _fetch(self, i: int, slot: _Slot) -> None:
        if slot.block is not None:
            for part in self._parts[slot.block]:
                part.tensor.data = part.within(self._hosts[slot.block])
                increment_version(part.tensor)  # whoever kept it for a backward pass is told
        host = self._hosts[i]
        slot.arrived = self._transfers.copy(slot.buffer[:host.numel()], host, slot.freed)
        slot.block = i

    def _unlock(self, blocks: Sequence[int]) -> None:
        for slot in self._ring:
            if slot.is_locked and slot.block in blocks:
                slot.is_locked = False
                slot.freed = self._transfers.moment()


def spread(count: int, total: int) -> tuple[int, ...]:
    """`count` of `total` blocks at even distances, so that each copy has as much computing as possible to hide behind.

    Source: the indices of musubi-tuner's one-way swap, ((2k + 1) total) // (2 count).
    """
    return tuple((2 * k + 1) * total // (2 * count) for k in range(count))


def parts_of(block: nn.Module, name: str) -> list[Part]:
    """Parameters and buffers of a block with their places in its flat buffer. ConfigError where one is trained."""
    parts, offset = [], 0
    for path, tensor in [*block.named_parameters(prefix=name), *block.named_buffers(prefix=name)]:
        if tensor.requires_grad:
            raise ConfigError(f"'{path}' is trained; only frozen blocks can be swapped, because nothing is copied "
                              "back. Leave --blocks_to_swap out.")
        parts.append(Part(tensor, offset, tensor.shape, tensor.dtype))
        offset += aligned(tensor.nbytes)
    return parts


def flat_bytes(tensors: Sequence[tuple[torch.Size, torch.dtype]]) -> int:
    """Length of the flat buffer of tensors of these shapes and dtypes."""
    return sum(aligned(shape.numel() * dtype.itemsize) for shape, dtype in tensors)


def aligned(nbytes: int) -> int:
    """`nbytes` brought up to a whole multiple of `ALIGNMENT`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
