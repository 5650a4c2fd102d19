"""Memory of an NVIDIA GPU for the log: torch's own counters, and what nvidia-smi sees of all programs."""

from dataclasses import dataclass
import subprocess

import torch

from common.logs import get_logger

log = get_logger(__name__)

GIB = 2**30
_SMI_SECONDS = 20.0


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device, as torch's allocator counts them on the host: reading them waits for nothing."""

    allocated: int
    reserved: int
    """Allocated, and kept for what comes."""
    peak: int
    """Highest `allocated` since the run began."""

    @property
    def words(self) -> str:
        """``[mem] alloc=1.00G reserved=2.00G max_alloc=3.00G``, in GiB."""
        return (f"[mem] alloc={self.allocated / GIB:.2f}G reserved={self.reserved / GIB:.2f}G "
                f"max_alloc={self.peak / GIB:.2f}G")

    @property
    def short(self) -> str:
        """In use and peak, for a bar."""
        return f"{self.allocated / GIB:.1f}/{self.peak / GIB:.1f}G"


def device_memory(device: torch.device) -> DeviceMemory | None:
    """The counters of a CUDA device; None for any other."""
    if device.type != "cuda":
        return None
    counts = torch.cuda.memory_stats(device)  # once: torch makes the whole table for each single figure
    return DeviceMemory(*(counts.get(name, 0) for name in (
        "allocated_bytes.all.current", "reserved_bytes.all.current", "allocated_bytes.all.peak")))


class Smi:
    """Asks nvidia-smi for the memory of one card. Where it is missing or fails, one line says so and it is left."""

    def __init__(self, card: str, program: str = "nvidia-smi") -> None:
        """`card` is an index, or the UUID, which other programs' settings cannot move (CUDA_VISIBLE_DEVICES)."""
        self._command = [program, f"--id={card}", "--query-gpu=memory.total,memory.used",
                         "--format=csv,noheader,nounits"]
        self.works = True

    @classmethod
    def of(cls, device: torch.device) -> "Smi | None":
        """For a CUDA device; None for any other."""
        if device.type != "cuda":
            return None
        return cls(f"GPU-{torch.cuda.get_device_properties(device).uuid}")

    def line(self) -> str:
        """``[nvsmi] total=143771MiB used=1234MiB``; empty where nvidia-smi cannot tell."""
        if not self.works:
            return ""
        try:
            answer = subprocess.run(self._command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True)
            total, used = (int(word) for word in answer.stdout.strip().splitlines()[0].split(","))
        except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
            self.works = False
            log.warning("--smi_every: nvidia-smi does not tell (%s); its lines are left out", error)
            return ""
        return f"[nvsmi] total={total}MiB used={used}MiB"
