"""The processes of one launch: who am I, and bring everybody's result to everybody."""

import os
from typing import TypeVar

T = TypeVar("T")


def process_index() -> tuple[int, int]:
    """(rank, number of processes) as accelerate and torchrun tell it."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """Processes of the launch on this machine; they share its cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1")))


def gather(value: T) -> list[T]:
    """The values of all processes, by rank; waits for the slowest. Uses no group when there is one process only."""
    if process_index()[1] == 1:
        return [value]
    from datetime import timedelta

    import torch.distributed as dist

    if not dist.is_initialized():
        # Encoding shares nothing between devices, so that gloo serves on every machine; a large share may take hours.
        dist.init_process_group("gloo", timeout=timedelta(hours=24))
    values: list[T | None] = [None] * dist.get_world_size()
    try:
        dist.all_gather_object(values, value)
    finally:
        dist.destroy_process_group()
    return values  # type: ignore[return-value]
