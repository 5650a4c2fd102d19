"""What one call of the VAE reads and writes: a row of `python -m benchmarks.vae_speed --parts bytes`, on any machine.

Counted are the bytes of all tensors that go into and come out of each operation that is no view, over those of the
convolutions and products, which have to be. A pass of `wan.memory.vae_rows` counts as the one kernel that it is on a
GPU: what it reads and what it writes; that convolutions on the CPU lose the layout, and cuDNN's do not, is left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wan.memory import vae_fused, vae_rows
from wan.memory.vae_rows import Pending, Wanted
from wan.memory.vae_speed import VaeSpeed, speed_up
from wan.modules.vae import Vae
from wan.modules.vae_coders import VaeShape
from wan.modules.vae_layers import PastFrames

if TYPE_CHECKING:
    from benchmarks.vae_speed import Bench

PRODUCTS = ("convolution", "mm", "addmm", "bmm", "_scaled_dot_product_flash_attention_for_cpu", "linear")
FREE = ("empty", "empty_like", "empty_strided", "detach")


def size(*values: Any) -> int:
    """Bytes of the tensors among `values`."""
    return sum(one.numel() * one.element_size() for one in tree_leaves(values) if isinstance(one, Tensor))


class Counting(TorchDispatchMode):
    """Bytes by kind of operation, while it is on."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {"products": 0, "others": 0}
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (self.paused or func.is_view or name in FREE or name.endswith("_unsafe_view")):
            writes_in_place = func._schema.is_mutable
            kind = "products" if name in PRODUCTS else "others"
            # `x.copy_(y)` reads y and writes x, which is among the arguments already; so does `x.add_(y)` but for x.
            self.bytes[kind] += size(args) if writes_in_place else size(args, result)
        return result


@contextmanager
def passes_counted(counting: Counting) -> Iterator[None]:
    """Let each pass count as one kernel."""
    def counted(pending: Pending, wanted: Wanted) -> tuple[Tensor | None, Tensor | None]:
        counting.paused = True
        try:
            results = vae_rows.finish(pending, wanted)
        finally:
            counting.paused = False
        if not (pending.is_whole and not wanted.copied):
            total = None if pending.is_whole else results[0]
            copy = None if results[1] is None else results[1][:, :, wanted.room:]
            counting.bytes["others"] += size(pending.conv, pending.skipped, total, copy)
        return results

    def laid_out(x: Tensor) -> Tensor:
        counting.paused = True
        try:
            return last(x)
        finally:
            counting.paused = False

    last = vae_fused._last
    vae_fused.finish, vae_fused._last = counted, laid_out
    try:
        yield
    finally:
        vae_fused.finish, vae_fused._last = vae_rows.finish, last


@torch.no_grad()
def moved(task: str, speed: VaeSpeed) -> dict[str, int]:
    """Bytes of a later chunk of 16 frames (encode) or 5 latent frames (decode) at a twelfth of the released width."""
    torch.manual_seed(0)
    vae = speed_up(Vae(VaeShape(width=8)).requires_grad_(False), speed)
    run, shape = (vae.encode_chunk, (1, 3, 1, 32, 48)) if task == "encode" else (vae.decode_chunk, (1, 16, 1, 4, 6))
    past = PastFrames()
    run(torch.randn(shape), past)
    chunk = torch.randn(*shape[:2], 16 if task == "encode" else 5, *shape[3:])
    with Counting() as counting, passes_counted(counting):
        run(chunk, past)
    return counting.bytes


def bytes_moved(bench: "Bench") -> None:
    """Rows: what stands beside the products, as a multiple of what these read and write."""
    for task in ("encode", "decode"):
        for name, speed in (("channels last", VaeSpeed(channels_last=True)), ("fused", VaeSpeed(fused=True))):
            counted = moved(task, speed)
            bench.add(what="bytes", way=f"{task}, {name}", mib=counted["others"] / 2**20,
                      of_products=counted["others"] / counted["products"])
