"""`--memory auto`: the fastest way to run a step that fits on the GPU, decided before the base is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math

import torch

from common.devices import reach
from common.errors import ConfigError
from common.host_memory import host_memory
from common.logs import get_logger
from training.clips import EpochBatches
from training.config import TrainConfig
from training.estimating.estimate import largest_inputs, recipe_of
from training.estimating.memory_estimate import CONTEXT, GIB, Memory, estimate_memory
from training.fitting import largest_batch
from training.preflight import Plan
from wan.memory.compile_modes import RECORDING
from wan.memory.estimate import Holding, block_bytes, memory_need
from wan.memory.fp8 import Fp8Settings
from wan.memory.planner import MARGIN, Step, as_text, choose
from wan.memory.policies import Policy
from wan.modules.attention import HALF

log = get_logger(__name__)

HALVED = ("auto", "sdpa", "cudnn", "fa4")
"""Back ends whose attention need not be computed again (`wan.modules.attention_halves`)."""
HOST_SHARE = 0.7
"""Of the host memory that is free: the rest is for readers, caches of files and encoders of previews. A choice."""
FEW = 1 / 8
"""Share of the blocks whose attention is computed again sooner than all of it goes to host memory: what is seen of the
copies, 0.2 of 8.5 s, is the attention of 5 of 40 blocks (14B at 81 frames, H200)."""
SHORTEST = 6000
"""Tokens: the copies grow with them and the attention with their square. 6300 are the fewest that were measured."""


@dataclass(frozen=True)
class Free:
    """Bytes that a process may have."""

    gpu: int
    host: int = 0
    """Page-locked."""


def decide(config: TrainConfig, plan: Plan, batches: EpochBatches) -> TrainConfig:
    """The settings with `--memory auto` replaced by what it comes to on this process's device.

    ConfigError where the step does not fit even with everything in host memory that can be.
    """
    if config.speed.memory != "auto":
        return config
    device = batches.processes.device
    if device.type != "cuda":
        return _with(config, memory="none")
    host = int(host_memory().free * HOST_SHARE / batches.processes.count)
    return fitted(config, plan, batches, Free(reach(device), host))


def fitted(config: TrainConfig, plan: Plan, batches: EpochBatches, free: Free) -> TrainConfig:
    """The settings with `--memory auto` replaced by what fits on a GPU and a host where so much is free."""
    recipe = replace(recipe_of(config, plan, is_gpu=True), activations="full", compiled=False)
    memory = estimate_memory(recipe, largest_inputs(plan, batches))
    step = Step(plan.variant, largest_batch(plan), config.speed.compiles, recipe.own_times)
    holding = Holding(recipe.dtype, recipe.fp8, ring=recipe.ring)
    static, room = static_bytes(memory), int(free.gpu * (1 - MARGIN)) - CONTEXT
    host = free.host if can_lie_outside(config, recipe.dtype) else 0
    found = settle(step, holding, static, room, host)
    log.info("--memory auto: %.1f GiB are free, what stays there takes %.1f: %s", free.gpu / GIB, static / GIB,
             _words(found))
    if recipe.fp8 is None and len(found) > 1:
        smaller = replace(holding, fp8=Fp8Settings())
        saved = plan.variant.layers * (_block(step, holding) - _block(step, smaller))
        log.info("--memory auto: with --fp8_base, which halves the base's memory and rounds its weights, it would be: "
                 "%s", _words(settle(step, smaller, static - saved, room, host)))
    decided = _with(config, **found)
    refuse_moving_graphs(decided)
    return decided


def can_lie_outside(config: TrainConfig, dtype: torch.dtype) -> bool:
    """Whether what self-attention gives can wait in host memory: half precision, a back end whose halves can be had,
    and no recorded graphs.
    """
    return config.speed.attention in HALVED and dtype in HALF and config.speed.compile_mode not in RECORDING


def refuse_moving_graphs(decided: TrainConfig) -> None:
    """ConfigError where `--memory auto` came to moving what recorded CUDA graphs would hold by its address."""
    mode = decided.speed.compile_mode
    if mode in RECORDING and decided.small_card.moving:
        raise ConfigError(f"--memory auto has to move what blocks hold to host memory ({decided.small_card.moving}), "
                          f"and --compile_mode {mode} records CUDA graphs, which fix where everything lies. Leave "
                          "--compile_mode out, show shorter clips (--max_tokens), or train a smaller network.")


def _words(found: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())


def settle(step: Step, holding: Holding, static: int, room: int, host: int = 0) -> dict[str, object]:
    """Settings that fit `static` bytes and the step's activations into `room`, and what waits outside into `host`.

    First what is kept for the backward pass, attention in nearly all blocks at least; then the blocks' inputs and what
    their attention gave to host memory, with as few blocks as will do; without the room for that, as much attention as
    can be kept on the GPU, or none, and the inputs alone in host memory. `holding` has nothing there yet.
    """
    layers, mix = step.variant.layers, choose(step, room - static)
    if mix is not None and mix.count("full") <= FEW * layers:
        return {"memory": as_text(mix)}
    outside = _moved(step, replace(holding, offloads=True, attention=layers), static, room)
    if outside is not None and step.tokens >= SHORTEST and (
            memory_need(step.variant, outside, step.tokens).host <= host):
        return _settings(outside)
    if mix is not None:
        return {"memory": as_text(mix)}
    outside = _moved(step, replace(holding, offloads=True), static, room)
    if outside is not None:
        return _settings(outside)
    least = planned(step, static, replace(holding, swapped=layers, offloads=True)) / GIB
    raise ConfigError(f"--memory auto: a step of {step.tokens} tokens needs {least:.1f} GiB with every block swapped, "
                      f"and {room / GIB:.1f} can be had. Show shorter clips (--max_tokens), train a smaller network, "
                      "or use --fp8_base.")


def _moved(step: Step, holding: Holding, static: int, room: int) -> Holding | None:
    """With the fewest swapped blocks with which it fits; None where no number will do."""
    over = planned(step, static, holding) - room
    swapped = holding.ring + math.ceil(over / _block(step, holding)) if over > 0 else 0
    return replace(holding, swapped=swapped) if swapped <= step.variant.layers else None


def _settings(holding: Holding) -> dict[str, object]:
    found: dict[str, object] = {"memory": "attention" if holding.attention else "full",
                                "gradient_checkpointing_cpu_offload": True}
    return found | ({"blocks_to_swap": holding.swapped} if holding.swapped else {})


def _block(step: Step, holding: Holding) -> int:
    return block_bytes(step.variant, holding)[1]


def planned(step: Step, static: int, holding: Holding, policies: Sequence[Policy] = ()) -> int:
    """Bytes at the peak of a step, as `settle` reckons; `static` with no block swapped, `policies` of all blocks where
    nothing waits outside.

    Of what waits outside, what two blocks keep is on the GPU at a time: their inputs, and what the attention of one
    gave (that of the block in work is among what it works with).
    """
    kept: list[Policy] = list(policies) or ["full"] * step.variant.layers
    if holding.offloads:
        kept = ["full", "attention" if holding.attention else "full"]
    return static + step.activations(kept) - max(0, holding.swapped - holding.ring) * _block(step, holding)


def static_bytes(memory: Memory) -> int:
    """What stays on the GPU during all of a step."""
    return memory.tensors - memory.activations + memory.workspaces


def _with(config: TrainConfig, *, memory: object, **card: object) -> TrainConfig:
    return config.model_copy(update={"speed": config.speed.model_copy(update={"memory": memory}),
                                     "small_card": config.small_card.model_copy(update=card)})
