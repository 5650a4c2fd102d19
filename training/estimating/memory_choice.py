"""`--memory auto`: the fastest way to run a step that fits on the GPU, decided before the base is read."""

from collections.abc import Sequence
from dataclasses import replace

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
from wan.memory.estimate import Holding, block_bytes
from wan.memory.fp8 import Fp8Settings
from wan.memory.planner import MARGIN, Step, as_text, choose
from wan.memory.policies import Policy
from wan.memory.swap import RING

log = get_logger(__name__)

HALVED = ("auto", "sdpa", "cudnn", "fa4")
"""Back ends whose attention need not be computed again (`wan.modules.attention_halves`)."""
HOST_SHARE = 0.7
"""Of the host memory that is free: the rest is for readers, caches of files and encoders of previews. A choice."""


def decide(config: TrainConfig, plan: Plan, batches: EpochBatches) -> TrainConfig:
    """The settings with `--memory auto` replaced by what it comes to on this process's device.

    ConfigError where the step does not fit even with everything in host memory that can be.
    """
    if config.speed.memory != "auto":
        return config
    device = batches.processes.device
    if device.type != "cuda":
        return _with(config, memory="none")
    free = reach(device)
    recipe = replace(recipe_of(config, plan, is_gpu=True), activations="full", compiled=False)
    memory = estimate_memory(recipe, largest_inputs(plan, batches))
    step = Step(plan.variant, largest_batch(plan), config.speed.compiles, recipe.own_times)
    block = block_bytes(plan.variant, Holding(recipe.dtype, recipe.fp8))[1]
    static, room = static_bytes(memory), int(free * (1 - MARGIN)) - CONTEXT
    stays = config.speed.attention not in HALVED or (config.speed.compiles and config.speed.compile_mode in RECORDING)
    host = 0 if stays else host_room(batches.processes.count)
    found = settle(step, static, room, block, host)
    log.info("--memory auto: %.1f GiB are free, what stays there takes %.1f: %s", free / GIB, static / GIB,
             _words(found))
    if recipe.fp8 is None and len(found) > 1:
        smaller = block_bytes(plan.variant, Holding(recipe.dtype, Fp8Settings()))[1]
        log.info("--memory auto: with --fp8_base, which halves the base's memory and rounds its weights, it would be: "
                 "%s", _words(settle(step, static - plan.variant.layers * (block - smaller), room, smaller, host)))
    decided = _with(config, **found)
    refuse_moving_graphs(decided)
    return decided


def refuse_moving_graphs(decided: TrainConfig) -> None:
    """ConfigError where `--memory auto` came to moving what recorded CUDA graphs would hold by its address."""
    mode = decided.speed.compile_mode
    if decided.speed.compiles and mode in RECORDING and decided.small_card.moving:
        raise ConfigError(f"--memory auto has to move what blocks hold to host memory ({decided.small_card.moving}), "
                          f"and --compile_mode {mode} records CUDA graphs, which fix where everything lies. Leave "
                          "--compile_mode out, show shorter clips (--max_tokens), or train a smaller network.")


def _words(found: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())


def host_room(processes: int) -> int:
    """Bytes of host memory that each of so many processes may lock."""
    return int(host_memory().free * HOST_SHARE / processes)


def settle(step: Step, static: int, room: int, block: int, host: int = 0) -> dict[str, object]:
    """Settings that fit `static` bytes and the step's activations into `room`, and what waits outside into `host`;
    `block` is the weights of one block.

    First what is kept for the backward pass, attention at least; then the blocks' inputs and what their attention gave
    to host memory, with as few blocks as will do; without the room for that, as much attention as can be kept on the
    GPU, or none, and the inputs alone in host memory.
    """
    mix = choose(step, room - static)
    if mix is not None and "full" not in mix:
        return {"memory": as_text(mix)}
    layers = step.variant.layers
    if (swapped := _swapped(step, static, room, block, "attention")) is not None:
        outside = swapped * block + (layers - 1) * step.unit * 2 + (layers - 1) * step.tokens * step.variant.heads * 4
        if outside <= host:
            return _moved("attention", swapped)
    if mix is not None:
        return {"memory": as_text(mix)}
    if (swapped := _swapped(step, static, room, block, "full")) is not None:
        return _moved("full", swapped)
    least = planned(step, static, block, swapped=layers, offloads=True) / GIB
    raise ConfigError(f"--memory auto: a step of {step.tokens} tokens needs {least:.1f} GiB with every block swapped, "
                      f"and {room / GIB:.1f} can be had. Show shorter clips (--max_tokens), train a smaller network, "
                      "or use --fp8_base.")


def _swapped(step: Step, static: int, room: int, block: int, policy: Policy) -> int | None:
    """The fewest blocks with which it fits; None where no number will do."""
    layers = step.variant.layers
    return next((count for count in range(layers + 1) if planned(
        step, static, block, policies=[policy] * layers, swapped=count, offloads=True) <= room), None)


def _moved(policy: Policy, swapped: int) -> dict[str, object]:
    found: dict[str, object] = {"memory": policy, "gradient_checkpointing_cpu_offload": True}
    return found | ({"blocks_to_swap": swapped} if swapped else {})


def planned(step: Step, static: int, block: int, *, policies: Sequence[Policy] = (), swapped: int = 0,
            offloads: bool = False) -> int:
    """Bytes at the peak of a step, as `settle` reckons; `static` with no block swapped.

    With `offloads` what two blocks keep is on the GPU at a time: their inputs and, where `policies` say so, what the
    attention of one gave (that of the block in work is among what it works with).
    """
    kept: list[Policy] = list(policies) or ["full"] * step.variant.layers
    if offloads:
        kept = ["full", max(kept, key=step.kept)]
    return static + step.activations(kept) - max(0, swapped - RING) * block


def static_bytes(memory: Memory) -> int:
    """What stays on the GPU during all of a step."""
    return memory.tensors - memory.activations + memory.workspaces


def _with(config: TrainConfig, *, memory: object, **card: object) -> TrainConfig:
    return config.model_copy(update={"speed": config.speed.model_copy(update={"memory": memory}),
                                     "small_card": config.small_card.model_copy(update=card)})
