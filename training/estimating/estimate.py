"""The preflight: what a run will need, worked out before any long work, and told as a table.

Memory comes from `memory_estimate`, seconds from `step_time`, disk from `disk_estimate`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from common.devices import reach
from common.dtypes import parse_dtype
from common.host_memory import host_memory
from common.logs import get_logger
from dataset.batches import load_batch
from dataset.sampler import BatchPlan
from training.budget import tokens
from training.checkpoints import CheckpointPlan
from training.clips import EpochBatches
from training.config import TrainConfig
from training.estimating.disk_estimate import Disk, FileCounts, count_files, free_bytes
from training.estimating.estimate_report import Figures, Room, ValidationCost, as_text, options_text
from training.estimating.flops import flops
from training.estimating.memory_estimate import GIB, Memory, Saving, estimate_memory, savings
from training.estimating.step_time import Size, Speed, speed
from training.estimating.trial import Recipe, StepInputs, inputs_of
from training.fitting import fp8_of, offloaded_attention
from training.launch import base_dtype
from training.looking.validation import chosen, default_distance, passes_of
from training.loop import LoopSettings
from training.preflight import Plan
from wan.weights.dit import inspect_dit

log = get_logger(__name__)

BILLION = 10**9
"""Parameters above which a base is not trained on a CPU, so that an estimate without a GPU is one for a GPU."""


def tell_estimate(config: TrainConfig, plan: Plan, batches: EpochBatches, *, length: LoopSettings,
                  checkpoints: CheckpointPlan, done: int = 0) -> Figures | None:
    """Estimate the run and log the table; `done` steps are behind a run that goes on.

    The first process does it and the others wait. Returns the figures there, None elsewhere. Where the memory will not
    do, a warning names the options that would save some; the run is not refused, because an estimate is not a proof.
    """
    figures = None
    if batches.processes.is_main:
        figures = _estimate(config, plan, batches, length=length, checkpoints=checkpoints, done=done)
        log.info("%s", as_text(figures))
        if figures.is_too_much:
            recipe, inputs = recipe_of(config, plan, is_gpu=figures.memory.is_gpu), _read(figures.largest, plan)
            found = [*savings(recipe, inputs), *_fewer_frames(recipe, figures, plan)]
            log.warning("%s", options_text(figures, found))
    batches.processes.wait()
    return figures


def _estimate(config: TrainConfig, plan: Plan, batches: EpochBatches, *, length: LoopSettings,
              checkpoints: CheckpointPlan, done: int) -> Figures:
    device = batches.processes.device
    recipe = recipe_of(config, plan, is_gpu=_is_for_gpu(config, plan, device))
    patch = plan.variant.patch
    sizes = sorted(_sampled(batches, patch), key=_load, reverse=True)
    # Random lengths may not draw the longest in one epoch; memory must do for it.
    largest = max(_sampled(replace(batches, min_frames=None), patch), key=_load)
    memory = estimate_memory(recipe, _read(largest, plan))
    speed_: Speed | None = None
    if recipe.is_gpu == (device.type == "cuda"):
        speed_ = speed(recipe, memory.portions, sizes, lambda size: _read(size, plan), device)
    steps, epochs = length.totals(batches.per_epoch)
    return Figures(
        model=_model_name(plan, recipe), recipe=recipe, memory=memory, largest=largest, sizes=tuple(sizes),
        room=_room(config, recipe, device), speed=speed_, steps=steps - done, epochs=epochs,
        accumulation=length.accumulation, processes=batches.processes.count,
        batches_per_epoch=batches.per_epoch, validation=_validation(config, plan, batches, steps - done),
        disk=_disk(config, memory, checkpoints, steps=steps, per_epoch=length.steps_per_epoch(batches.per_epoch)))


def largest_inputs(plan: Plan, batches: EpochBatches) -> StepInputs:
    """A batch of the largest size that the run may be shown, as the model sees it."""
    found = max(_sampled(replace(batches, min_frames=None), plan.variant.patch), key=_load)
    return _read(found, plan)


def recipe_of(config: TrainConfig, plan: Plan, *, is_gpu: bool) -> Recipe:
    """What of the settings decides memory and speed."""
    network, settings, speed_ = config.network, config.optimiser, config.speed
    offloads = config.small_card.gradient_checkpointing_cpu_offload
    return Recipe(
        variant=plan.variant, dtype=base_dtype(speed_, torch.device("cuda" if is_gpu else "cpu")), is_gpu=is_gpu,
        fp8=fp8_of(speed_, is_stored_in_fp8=plan.is_stored_in_fp8),
        activations="full" if offloads else speed_.activations,
        compiled=speed_.compiles,
        swapped=config.small_card.blocks_to_swap, ring=config.small_card.block_swap_ring_size,
        offloads=offloads, offloaded_attention=len(offloaded_attention(config, plan.variant.layers)),
        attention=speed_.attention,
        network_module=network.network_module, network_dim=network.network_dim,
        network_alpha=network.network_alpha, network_dropout=network.network_dropout,
        network_args=tuple(plan.arguments.items()), sizes_from=plan.start if network.dim_from_weights else None,
        conditions=tuple((name, tuple(one.settings_text().items())) for name, one in plan.conditions.items()),
        optimizer_type=settings.optimizer_type, optimizer_args=tuple(settings.optimizer_args),
        learning_rate=settings.learning_rate, has_average=config.ema.ema_decay > 0)


def _is_for_gpu(config: TrainConfig, plan: Plan, device: torch.device) -> bool:
    wish = config.preflight.preflight_device
    if wish is not None:
        return wish == "cuda"
    if device.type == "cuda":
        return True
    numbers = sum(parameter.numel() for parameter in inspect_dit(config.data.dit).empty().parameters())
    return numbers > BILLION


def _model_name(plan: Plan, recipe: Recipe) -> str:
    variant = plan.variant
    return (f"{plan.task.name}, {variant.family} model {variant.dim} wide with {variant.layers} blocks"
            + (", blocks in float8" if recipe.fp8 is not None else ""))


@dataclass(frozen=True)
class _Sampled(Size):
    """A size with a batch that has it."""

    example: BatchPlan = field(compare=False)


def _sampled(batches: EpochBatches, patch: tuple[int, int, int]) -> list[_Sampled]:
    """Sizes of the first epoch's batches on this process, with how often each occurs and a full batch of it."""
    counts: Counter[tuple[Any, int]] = Counter()
    examples: dict[tuple[Any, int], BatchPlan] = {}
    for plan in batches.sampler(1):
        if not any(plan.weights):
            continue
        key = plan.items[0].bucket, len(plan.items)
        counts[key] += 1
        examples.setdefault(key, plan)
    return [_Sampled(width=plan.items[0].span.width, height=plan.items[0].span.height, frames=plan.items[0].frames,
                     samples=len(plan.items), tokens=tokens(plan.items[0], patch), count=counts[key], example=plan)
            for key, plan in examples.items()]


def _load(size: Size) -> int:
    return size.tokens * size.samples


def _read(size: Size, plan: Plan) -> StepInputs:
    assert isinstance(size, _Sampled)
    return inputs_of(load_batch(size.example), list(plan.conditions))


def _room(config: TrainConfig, recipe: Recipe, device: torch.device) -> Room | None:
    """What the run may take, where that is known."""
    given = config.preflight.preflight_vram
    if given is not None:
        return Room(int(given * GIB), "a device of --preflight_vram", is_whole_device=True)
    if recipe.is_gpu and device.type == "cuda":
        there = reach(device) - torch.cuda.memory_allocated(device)
        return Room(there, f"free on {torch.cuda.get_device_name(device)}")
    if not recipe.is_gpu:
        return Room(host_memory().free, "free in this computer's memory")
    return None


def _validation(config: TrainConfig, plan: Plan, batches: EpochBatches, steps: int) -> ValidationCost | None:
    if not plan.held_out:
        return None
    given = config.validation
    clips = chosen(plan.held_out, given.validation_seed, given.max_validation_steps)
    passes = passes_of(clips, list(plan.conditions.values()), len(given.validation_sigmas))
    each = given.validate_every_n_steps or default_distance(steps)
    times = 1 + -(-steps // each)
    work = sum(count * flops(plan.variant, tokens(clip, plan.variant.patch)).forward
               for clip, count in zip(clips, passes, strict=True))
    return ValidationCost(passes=sum(passes), times=times, flops=work / batches.processes.count)


def _disk(config: TrainConfig, memory: Memory, checkpoints: CheckpointPlan, *, steps: int, per_epoch: int) -> Disk:
    precision = config.saving.save_precision
    dtype = parse_dtype(precision) if precision else torch.float32
    counts = count_files(checkpoints, steps=steps, steps_per_epoch=per_epoch)
    if config.ema.ema_decay:  # NAME-raw.safetensors beside the final file
        counts = FileCounts(counts.most + 1, counts.left + 1)
    state = memory.saved.bytes_at(torch.float32) + memory.optimizer + memory.average
    return Disk(checkpoint=memory.saved.bytes_at(dtype), state=state, counts=counts,
                free=free_bytes(config.saving.output_dir), states_kept=config.state.save_last_n_states)


def _fewer_frames(recipe: Recipe, figures: Figures, plan: Plan) -> Iterator[Saving]:
    """The largest `--max_tokens` that would fit with all else as it is: memory grows in proportion to tokens."""
    size = figures.largest
    assert isinstance(size, _Sampled) and figures.room is not None
    latent_frames = (size.frames - 1) // 4 + 1
    if latent_frames < 2 or plan.task.family == "flf2v":
        return
    half = 4 * (latent_frames // 2 - 1) + 1
    example = replace(size.example, items=tuple(one.cut(half) for one in size.example.items))
    shorter = replace(size, frames=half, tokens=tokens(example.items[0], plan.variant.patch),
                      example=example)
    less = estimate_memory(recipe, _read(shorter, plan))
    fitting = fitting_tokens((size.samples * size.tokens, figures.asked(figures.memory)),
                             (shorter.samples * shorter.tokens, figures.asked(less)), figures.room.bytes)
    if fitting >= size.tokens // latent_frames:
        yield Saving(f"--max_tokens {fitting}", None)


def fitting_tokens(many: tuple[int, int], few: tuple[int, int], room: int) -> int:
    """Tokens that fit into `room` bytes, from (tokens, bytes) of two batches: a step grows in proportion to tokens."""
    each = (many[1] - few[1]) / (many[0] - few[0])
    return int(few[0] + (room - few[1]) / each)
