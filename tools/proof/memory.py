"""How much memory each chunk of a long video takes at most."""

from collections.abc import Callable
from threading import Event, Thread
from typing import Any

from torch import Tensor

from inference.guidance import Step

SAMPLED_EVERY_S = 0.02


class ChunkMemory:
    """Peak of each chunk in MiB: what the GPU has allocated, or without one the process's resident memory.

    Used as a `with` block around a generation whose `watch` is `self.watch`. A chunk begins with its first step and
    ends where the next one begins, so its decoding and encoding count as its own. Resident memory is sampled.
    """

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        self.peaks: list[float] = []
        self._stop = Event()
        self._thread = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "ChunkMemory":
        if not self.on_gpu:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._note()
        self._stop.set()
        if not self.on_gpu:
            self._thread.join()

    @property
    def watch(self) -> Callable[[Step, Tensor], None]:
        """To be called after every step."""
        def watching(step: Step, sample: Tensor) -> None:
            self._note()
            if step.index == 0:
                self.peaks.append(0.0)
                if self.on_gpu:
                    import torch

                    torch.cuda.reset_peak_memory_stats()
        return watching

    def _note(self) -> None:
        if not self.peaks:
            return
        self.peaks[-1] = max(self.peaks[-1], self._now())

    def _now(self) -> float:
        if self.on_gpu:
            import torch

            return torch.cuda.max_memory_allocated() / 2**20
        import psutil

        return float(psutil.Process().memory_info().rss) / 2**20

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLED_EVERY_S):
            self._note()
