"""Copies between host memory and a device beside the computing: a stream of their own, page-locked memory, no waits of
the host.

A moment is a point in the order of the device's work. Copies wait for moments of the computing and the computing waits
for moments of the copies; the program itself goes on at once.
"""

from typing import Any, Protocol
import weakref

import numpy as np
import torch
from torch import Tensor

from common.logs import get_logger

log = get_logger(__name__)


class Transfers(Protocol):
    """How bytes get to a device and back."""

    def host(self, nbytes: int) -> Tensor:
        """`nbytes` (uint8) of host memory that copies are fast from and to; the content is undefined."""
        ...

    def moment(self) -> Any:
        """Now, in the order of the computing: all that was asked of the device so far."""
        ...

    def copy(self, target: Tensor, source: Tensor, after: Any) -> Any:
        """Copy once the moment `after` (None: at once) has passed; copies keep their order. The moment of the end."""
        ...

    def wait(self, moment: Any) -> None:
        """Let the computing that is asked from now on wait until `moment` (None: nothing) has passed."""
        ...


class PlainTransfers:
    """Copies that are done when they are asked for: on the CPU, and wherever there are no streams."""

    def host(self, nbytes: int) -> Tensor:
        """Ordinary memory."""
        return torch.empty(nbytes, dtype=torch.uint8)

    def moment(self) -> None:
        """Everything before has been done already."""

    def copy(self, target: Tensor, source: Tensor, after: None) -> None:
        """Copy now."""
        target.copy_(source)

    def wait(self, moment: None) -> None:
        """Nothing is left to wait for."""


class CudaTransfers:
    """Copies on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def host(self, nbytes: int) -> Tensor:
        """Page-locked memory."""
        return page_locked(nbytes)

    def moment(self) -> torch.cuda.Event:
        """An event on the stream that computes."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def copy(self, target: Tensor, source: Tensor, after: torch.cuda.Event | None) -> torch.cuda.Event:
        """Copy on the side stream."""
        if after is not None:
            self._stream.wait_event(after)
        event = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event.record(self._stream)
        return event

    def wait(self, moment: torch.cuda.Event | None) -> None:
        """Hold the computing stream, not the host."""
        if moment is not None:
            torch.cuda.current_stream(self.device).wait_event(moment)


def transfers_for(device: torch.device) -> Transfers:
    """Copies beside the computing where the device can do that."""
    return CudaTransfers(device) if device.type == "cuda" else PlainTransfers()


def page_locked(nbytes: int) -> Tensor:
    """`nbytes` (uint8) of page-locked host memory, needs CUDA.

    torch's own `pin_memory` rounds up to a power of two, which would cost up to twice the memory; so ordinary memory
    is registered as it is. Where the driver refuses that, torch's own way is tried, and then the memory stays ordinary
    with a warning: copies from it hold the program up.
    """
    array = np.empty(max(nbytes, 1), dtype=np.uint8)
    memory = torch.from_numpy(array)[:nbytes]
    cudart = torch.cuda.cudart()
    if cudart.cudaHostRegister(array.ctypes.data, array.nbytes, 0) == cudart.cudaError.success:
        # The tensor keeps the array alive, which tells of its end before its memory is given back.
        weakref.finalize(array, cudart.cudaHostUnregister, array.ctypes.data).atexit = False
        return memory
    try:
        return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        log.warning("%.2f GiB of host memory could not be page-locked (%s): copies to the GPU will be slow. Free host "
                    "memory, or swap fewer blocks.", nbytes / 2**30, error)
        return memory
