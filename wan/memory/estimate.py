"""What a DiT takes by arithmetic: weights, ring of a block swap, and what a training step keeps for its backward pass.

Exact for what is listed here, to the byte (tested against real tensors). Not in it: the trained network with its
gradients and optimiser, what one block needs while it computes, CUDA's own.
"""

from dataclasses import dataclass

import torch
from torch import nn

from wan.memory.fp8 import Fp8Settings
from wan.memory.swap import RING, aligned
from wan.modules.block import WanAttentionBlock
from wan.modules.dit import WanDiT
from wan.variants import Variant


@dataclass(frozen=True)
class Holding:
    """How the base is held."""

    dtype: torch.dtype = torch.bfloat16
    fp8: Fp8Settings | None = None
    swapped: int = 0
    """Blocks in host memory."""
    ring: int = RING
    recomputes: bool = True
    """Gradient checkpointing of every block."""
    offloads: bool = False
    """Inputs of the blocks in host memory too."""
    attention: int = 0
    """Blocks of which what self-attention gave lies there too, where inputs do."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes."""

    weights: int
    """On the device, without the ring."""
    ring: int
    kept: int
    """Inputs of the blocks, and what attention gave, on the device, at most."""
    host_weights: int
    """Page-locked."""
    host_kept: int
    """Page-locked."""

    @property
    def device(self) -> int:
        """On the device together."""
        return self.weights + self.ring + self.kept

    @property
    def host(self) -> int:
        """In page-locked host memory together."""
        return self.host_weights + self.host_kept

    @property
    def words(self) -> str:
        """One line, in GiB."""
        text = f"weights {self.weights / 2**30:.2f}"
        text += f" + ring {self.ring / 2**30:.2f}" if self.ring else ""
        text += f" + inputs of blocks {self.kept / 2**30:.2f}" if self.kept else ""
        text += f" = {self.device / 2**30:.2f} GiB on the device"
        return text + (f"; {self.host / 2**30:.2f} GiB of page-locked host memory" if self.host else "")


def memory_need(variant: Variant, holding: Holding, tokens: int = 0) -> MemoryNeed:
    """What a DiT takes; `tokens` of a training step over the whole batch, 0 for weights alone (and for generation).

    Tokens are latent frames * (height / 16) * (width / 16) * samples, extra ones included.
    """
    block, flat = block_bytes(variant, holding)
    layers, ring = variant.layers, min(holding.ring, holding.swapped)
    inputs = tokens * variant.dim * holding.dtype.itemsize
    kept, host_kept = layers * inputs, 0
    if holding.offloads:
        # Beside the output in the model's precision a float32 for each head: the logarithms of softmax's denominators.
        seen = inputs + tokens * variant.heads * 4
        kept = min(layers, 2) * inputs + min(holding.attention, 2) * seen
        host_kept = (layers - 1) * inputs + min(holding.attention, layers - 1) * seen
    assert holding.recomputes or not tokens, "what blocks keep without recomputation hangs on the kernels"
    return MemoryNeed(weights=rest_bytes(variant, holding.dtype) + (layers - holding.swapped) * block, ring=ring * flat,
                      kept=kept, host_weights=holding.swapped * flat, host_kept=host_kept)


def block_bytes(variant: Variant, holding: Holding) -> tuple[int, int]:
    """Bytes of one block: of its tensors, and of its flat buffer."""
    with torch.device("meta"):
        block = WanAttentionBlock(variant)
    linears = {f"{name}.weight" for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    sizes = []
    for name, parameter in block.named_parameters():
        if holding.fp8 is None or name not in linears:
            sizes.append(parameter.numel() * holding.dtype.itemsize)
        else:
            sizes.append(parameter.numel() * holding.fp8.dtype.itemsize)
            sizes.append(scales(parameter.shape, holding.fp8) * holding.dtype.itemsize)
    return sum(sizes), sum(aligned(size) for size in sizes)


def scales(shape: torch.Size, fp8: Fp8Settings) -> int:
    """Numbers that a weight of `shape` is scaled by (`wan.memory.fp8.quantise`)."""
    rows, columns = shape
    if fp8.mode == "tensor":
        return 1
    return rows if fp8.mode == "channel" or columns % fp8.block else rows * columns // fp8.block


def rest_bytes(variant: Variant, dtype: torch.dtype) -> int:
    """Bytes of everything but the blocks."""
    with torch.device("meta"):
        dit = WanDiT(variant)
    return sum(parameter.numel() for name, parameter in dit.named_parameters() if not name.startswith("blocks.")
               ) * dtype.itemsize
