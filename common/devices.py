"""The device that work is done on, and what it took."""

from contextlib import AbstractContextManager, nullcontext
import os
import platform
import sys
import time
from typing import TYPE_CHECKING

from common.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
"""Setting of torch's GPU allocator: its memory grows in place, so that clips of many sizes leave no gaps in it."""


def grow_memory_in_place() -> None:
    """Give torch the setting above, unless the user's environment has one; to be called before torch is imported.

    Linux alone: elsewhere torch warns that it cannot. Not on Linux inside Windows (WSL), where drivers have failed on
    it with errors that name no cause (pytorch issue 192330).
    """
    names = [*ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"]
    if sys.platform == "linux" and "microsoft" not in platform.release().lower() and not any(
            name in os.environ for name in names):
        os.environ.update(ALLOCATOR)


def pick_device(name: str | None = None) -> str:
    """Device by name, or the best one here: this process's CUDA device, else the CPU.

    `cuda` without a number is this process's one too, so that the processes of a launch do not crowd on the first.
    ConfigError when the named device is not there.
    """
    import torch

    own = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    if name is None:
        return own if torch.cuda.is_available() else "cpu"
    kind = name.split(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch {torch.__version__} finds no CUDA device here. Use --device cpu, or "
                          "install the NVIDIA driver and an ordinary torch build.")
    if kind not in ("cuda", "cpu", "mps"):
        raise ConfigError(f"--device {name}: unknown. Use cuda, cuda:1, mps or cpu.")
    return own if name == "cuda" else name


def sent(tensor: "Tensor", device: "torch.device | str") -> "Tensor":
    """`tensor` on `device`. From the CPU to CUDA it goes through page-locked memory, so that the host does not wait.

    A copy from ordinary memory waits for all that the device still has to do.
    """
    import torch

    if torch.device(device).type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.contiguous().pin_memory()).to(device, non_blocking=True)


def on_its_device(tensor: "Tensor") -> AbstractContextManager[object]:
    """Inside, kernels of Triton are started on the tensor's device; nothing is to do where it is the current one."""
    import torch

    is_there = not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device()
    return nullcontext() if is_there else torch.cuda.device_of(tensor)


class Meter:
    """Seconds and peak device memory of a stretch of work."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = device
        self.started = time.monotonic()
        if device.startswith("cuda"):
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(device)

    def line(self) -> str:
        """One line such as ``12.3 s, peak 41.20 GiB on cuda:0``; host memory on a CPU where it can be read."""
        import torch

        seconds = f"{time.monotonic() - self.started:.1f} s"
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
            return f"{seconds}, peak {torch.cuda.max_memory_allocated(self.device) / 2**30:.2f} GiB on {self.device}"
        return f"{seconds} on {self.device}"


def reach(device: "torch.device") -> int:
    """Bytes that this process can have on a GPU, what it holds already included.

    Within the share that `torch.cuda.set_per_process_memory_fraction` limits it to, which the driver does not know.
    """
    import torch

    free, total = torch.cuda.mem_get_info(device)
    # torch 2.8 and older can set the share, and cannot tell it.
    share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)
    return within_share(free + torch.cuda.memory_reserved(device), total, share)


def within_share(there: int, total: int, share: float) -> int:
    """The lesser of what is there and of the process's share of the whole GPU."""
    return min(there, int(share * total))


def free_memory() -> None:
    """Give memory that is no longer referenced back to the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
