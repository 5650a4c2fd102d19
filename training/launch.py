"""The processes of a launch, the device, the precision and the seed of a run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
import os
import random
import secrets
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from common.errors import ConfigError
from common.logs import get_logger
from training.config import FP16_REFUSED, LoggingSection, SavingSection, SpeedSection, TrainConfig
from training.processes import Processes, tell_others
from training.telling.trackers import log_folder, tracker_names

log = get_logger(__name__)

_FOREIGN_PLUGINS = {
    "DeepSpeed": "its shards save memory of trained weights, of which a LoRA has few; the frozen base is what is large "
                 "(--fp8_base halves it).",
    "FSDP": "it would cut the frozen base up and gather it for every block; for LoRA that is several times slower than "
            "one copy on each GPU.",
}
"""What accelerate can be told to use, and why a LoRA gains nothing by it (slower by 3 to 6: SimpleTuner, FSDP2.md)."""


def make_accelerator(settings: LoggingSection) -> Any:
    """accelerate's view of the launch: processes, device, trackers. Precision and gradients stay in our own hands.

    Where accelerate was told to use DeepSpeed or FSDP, that is left out with a warning.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    for name, why in _FOREIGN_PLUGINS.items():
        variable = f"ACCELERATE_USE_{name.upper()}"
        if os.environ.get(variable, "false").lower() in ("1", "true"):
            log.warning("accelerate is set up for %s; training goes on without it: %s", name, why)
            os.environ[variable] = "false"
    folder = log_folder(settings)
    waits = InitProcessGroupKwargs(timeout=timedelta(minutes=settings.ddp_timeout)) if settings.ddp_timeout else None
    # Told of the CPU, accelerate joins the processes of a torchrun there; left to itself it runs each of them alone.
    uses_cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    # accelerate launch may ask for fp16, which it refuses on a CPU; its own precision is never used here.
    return Accelerator(cpu=uses_cpu, mixed_precision="no", log_with=tracker_names(settings) or None,
                       project_dir=None if folder is None else str(folder), kwargs_handlers=[waits] if waits else None)


def processes_of(accelerator: Any) -> Processes:
    """Rank, number of processes and device of an Accelerator."""
    processes = Processes(accelerator.process_index, accelerator.num_processes, accelerator.device)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if processes.count != started:
        raise ConfigError(f"{started} processes were started, but accelerate joined {processes.count}. Start them with "
                          "accelerate launch or torchrun.")
    return processes


@contextmanager
def together(processes: Processes) -> Iterator[None]:
    """The stretch in which the processes of a launch work together; they part before the interpreter ends.

    gloo's threads may hold the tensors of a collective for a moment after its result is there. An interpreter that ends
    in that moment aborts (PyTorch's pull request 179291): a false exit code, and the launcher ends the others for it.
    NCCL has no such threads, and after an error it may wait for what others never send; only a good end parts there.
    Who leaves with an error tells the others why: one of them may be the one whose words are read.
    """
    is_done = False
    try:
        yield
        is_done = True
    except BaseException as error:
        if processes.count > 1:
            tell_others(error)
        raise
    finally:
        if processes.count > 1 and (is_done or dist.get_backend() == "gloo"):
            dist.destroy_process_group()


def base_dtype(settings: SpeedSection, device: torch.device) -> torch.dtype:
    """Precision of the frozen base: --mixed_precision, else what accelerate launch was told, else bf16 on a GPU.

    accelerate launch says "no" when nobody asked it anything, so its "no" is no wish.
    """
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    wish = settings.mixed_precision or (told if told in ("bf16", "fp16") else None)
    if wish == "fp16":
        raise ConfigError(FP16_REFUSED)
    if wish is None:
        wish = "bf16" if device.type == "cuda" else "no"
    is_here = device.type == "cuda" and torch.cuda.is_available()  # a preflight may be for a GPU elsewhere
    if wish == "bf16" and is_here and not torch.cuda.is_bf16_supported():
        log.warning("this GPU has no bfloat16 units; it is emulated and slow. --mixed_precision no uses float32.")
    return torch.bfloat16 if wish == "bf16" else torch.float32


def with_seed(config: TrainConfig, processes: Processes, known: int | None = None) -> TrainConfig:
    """The settings with a seed: the given one, the `known` one of the run, or a random one that all processes share."""
    seed = known if config.length.seed is None else config.length.seed
    if seed is None:
        seed = processes.gather(secrets.randbelow(2**31))[0]
    return config.model_copy(update={"length": config.length.model_copy(update={"seed": seed})})


@contextmanager
def run_lock(settings: SavingSection, processes: Processes) -> Iterator[None]:
    """Keep a second training out of the folder, as long as this one runs. ConfigError where one is."""
    from filelock import FileLock, Timeout

    path = settings.output_dir / ".training.lock"
    lock = FileLock(path)

    def take() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"another training runs in {settings.output_dir}, whose log and records are one run's "
                              f"({path.name} is held). Wait for it, stop it, or choose another --output_dir."
                              ) from error

    processes.from_first(take)
    try:
        yield
    finally:
        if processes.is_main:
            path.unlink(missing_ok=True)
            lock.release()


def refuse_differences(processes: Processes, facts: Mapping[str, str]) -> None:
    """ConfigError where the processes' `facts` (what they train on, what they start from) are not the same.

    Gradients are added up without a look at what they belong to, so a stale copy of a file on one machine would spoil
    the run silently.
    """
    everywhere = processes.gather(dict(facts))
    for name, value in everywhere[0].items():
        strangers = [str(rank) for rank, one in enumerate(everywhere) if one[name] != value]
        if strangers:
            raise ConfigError(f"the {name} of process {', '.join(strangers)} differ from those of process 0. "
                              "Give every machine the same files and settings.")


def set_up_torch(settings: SpeedSection, seed: int) -> None:
    """Seed every generator (initial weights are equal on every process) and set what the user chose for CUDA."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if settings.cuda_allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
    if settings.cuda_cudnn_benchmark:
        torch.backends.cudnn.benchmark = True
