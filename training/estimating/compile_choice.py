"""`--compile auto`: whether blocks are compiled, decided before the base is read, and one line that says why."""

from dataclasses import dataclass, replace
import os
from pathlib import Path
import shutil
import sys
import sysconfig

import torch

from common.logs import get_logger
from dataset.sampler import BatchPlan
from training.budget import tokens
from training.clips import EpochBatches
from training.config import TrainConfig
from training.estimating.flops import flops
from training.estimating.step_time import KNOWN_RATE
from training.preflight import Plan

log = get_logger(__name__)

GRAPH_S = 60.0
"""What the graphs of one size cost: about a minute on an H200's host (14B)."""
SAVED = 0.2
"""Share of a step that compiling saves at least: a fifth to a third was measured."""
FIRST_CAPABILITY = (7, 0)
"""Of CUDA devices that triton compiles for."""


@dataclass(frozen=True)
class Work:
    """What a sitting of a run computes."""

    batches: int
    """Of this process."""
    batch_s: float
    """Mean seconds of forward and backward, by their operations at an H200's rate; slower cards save more."""
    sizes: int
    """Numbers of samples and tokens that differ: each has graphs of its own."""

    @property
    def saved_s(self) -> float:
        """Seconds that compiling saves."""
        return SAVED * self.batches * self.batch_s

    @property
    def cost_s(self) -> float:
        """Seconds that it takes."""
        return GRAPH_S * self.sizes


def settle_compile(config: TrainConfig, plan: Plan, batches: EpochBatches, steps: int, *, was_compiled: bool = False
                   ) -> TrainConfig:
    """The settings with `--compile auto` replaced by on or off, for a sitting of `steps` steps.

    `was_compiled`: a run that goes on was compiled before. It stays so however few steps are left, because its numbers
    are to be those of a run that was never stopped; one that was not would win less than at its beginning.
    """
    if config.speed.compile != "auto":
        return config
    obstacle = _obstacle(plan, batches.processes.device)
    if obstacle:
        is_on, why = False, obstacle
    elif was_compiled:
        is_on, why = True, "as this run was before"
    else:
        is_on, why = verdict(work_of(config, plan, batches, steps))
    # On a CPU nobody expects it, and nothing is to be done about it.
    if batches.processes.device.type == "cuda":
        log.info("--compile auto: %s, %s", "on" if is_on else "off", why)
    return config.model_copy(update={"speed": config.speed.model_copy(update={"compile": "on" if is_on else "off"})})


def verdict(work: Work) -> tuple[bool, str]:
    """Whether compiling is worth it, and why, in words."""
    sizes = f"{work.sizes} sizes of batches cost" if work.sizes > 1 else "1 size of batches costs"
    what = (f"{sizes} about {work.cost_s / 60:.0f} min once, and {work.batches} batches save about "
            f"{work.saved_s / 60:.1f} min at an H200's rate")
    if work.saved_s > work.cost_s:
        return True, what
    return False, f"{what}; --compile on compiles all the same"


def _obstacle(plan: Plan, device: torch.device) -> str:
    """What stands against it, in words; empty where nothing does."""
    if device.type != "cuda":
        return f"it pays on CUDA alone, and this is {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < FIRST_CAPABILITY:
        return f"triton needs compute capability 7.0, and this GPU has {capability[0]}.{capability[1]}"
    if plan.arguments.get("module_dropout", "0").strip() not in ("0", "0.0", "None", ""):
        return "module_dropout decides on the host which layers act, which no graph can"
    return compiler_problem()


def compiler_problem() -> str:
    """What torch's compiler lacks on this machine, with what to do; empty where it has all."""
    from importlib.util import find_spec

    if find_spec("triton") is None:
        return "the package triton is missing (pip install triton; on Windows triton-windows)"
    if sys.platform == "win32":  # triton-windows brings its own
        return ""
    if not os.environ.get("CC") and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "no C compiler was found, which triton needs (install gcc)"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return "" if header.is_file() else f"{header} is missing, which triton needs (install python3-dev)"


def work_of(config: TrainConfig, plan: Plan, batches: EpochBatches, steps: int) -> Work:
    """What `steps` steps compute, by the first epoch of each phase."""
    parts = [(phase.batches(batches), phase.end_step - phase.start_step) for phase in plan.phases] or [(batches, steps)]
    whole = sum(count for _, count in parts)
    sizes: set[tuple[int, int]] = set()
    seconds = 0.0
    for part, count in parts:
        whole_clips = replace(part, min_frames=None).sampler(1)
        sizes |= {size for one in whole_clips if any(one.weights) for size in _possible(one, part.min_frames, plan)}
        plans = [one for one in part.sampler(1) if any(one.weights)]
        work = sum(_flops(one, config, plan) for one in plans) / max(1, len(plans))
        seconds += work / KNOWN_RATE * count / max(1, whole)
    return Work(steps * config.length.gradient_accumulation_steps, seconds, max(1, len(sizes)))


def _flops(batch: BatchPlan, config: TrainConfig, plan: Plan) -> float:
    each = flops(plan.variant, tokens(batch.items[0], plan.variant.patch))
    return len(batch.items) * each.step(config.speed.activations == "full")


def _possible(batch: BatchPlan, min_frames: int | None, plan: Plan) -> set[tuple[int, int]]:
    """(samples, tokens) that such a batch may have: one, or with random lengths one for each of them."""
    frames = {one.frames for one in batch.items}
    patch = plan.variant.patch
    clip = batch.items[0]
    if min_frames is None:
        return {(len(batch.items), tokens(clip, patch))}
    lengths = range(min(min_frames, *frames), max(frames) + 1, 4)
    return {(len(batch.items), tokens(clip.cut(length), patch)) for length in lengths}
