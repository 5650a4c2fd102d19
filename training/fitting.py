"""How a base is held on the device: block swap, recomputation, offloading, and what that takes by arithmetic."""

import torch

from common.errors import ConfigError
from common.host_memory import host_memory
from common.logs import get_logger
from training.budget import tokens
from training.config import SpeedSection, TrainConfig
from training.preflight import Plan
from wan.memory.blocks import run_blocks
from wan.memory.estimate import Holding, MemoryNeed, memory_need
from wan.memory.fp8 import Fp8Settings
from wan.memory.graphs import GraphLog
from wan.memory.offload import ActivationOffload
from wan.memory.planner import as_text
from wan.memory.policies import parse_policies
from wan.memory.recompute import recompute_blocks
from wan.memory.swap import BlockSwap
from wan.modules.dit import WanDiT

log = get_logger(__name__)


def largest_batch(plan: Plan) -> int:
    """Tokens of the largest batch that the run may be shown."""
    patch = plan.variant.patch
    clips = [clip for phase in plan.phases for clip in phase.clips] or plan.clips
    return max(tokens(clip, patch) * clip.batch_size for clip in clips)


def need_of(config: TrainConfig, plan: Plan, dtype: torch.dtype, fp8: Fp8Settings | None) -> MemoryNeed:
    """What the base takes, and what a step keeps of its largest batch where blocks are recomputed."""
    card, offloads = config.small_card, config.small_card.gradient_checkpointing_cpu_offload
    recomputes = offloads or config.speed.activations == "full"
    holding = Holding(dtype, fp8, swapped=card.blocks_to_swap, ring=card.block_swap_ring_size, recomputes=recomputes,
                      offloads=offloads, attention=len(offloaded_attention(config, plan.variant.layers)))
    return memory_need(plan.variant, holding, largest_batch(plan) if recomputes else 0)


def tell_need(need: MemoryNeed) -> None:
    """One line; ConfigError where the host has not so much memory, or the container that the run is in."""
    log.info("memory by arithmetic, beside the trained network and the block that computes: %s", need.words)
    if need.host > (present := host_memory().total):
        raise ConfigError(f"{need.host / 2**30:.1f} GiB of host memory are needed for swapped blocks and offloaded "
                          f"activations, and this machine (or container) has {present / 2**30:.1f}. Swap fewer blocks "
                          "(--blocks_to_swap), or leave --gradient_checkpointing_cpu_offload out.")


def fp8_of(speed: SpeedSection, *, is_stored_in_fp8: bool) -> Fp8Settings | None:
    """How the linears of the blocks are held; None: in the base's precision."""
    if speed.fp8_fast:
        return Fp8Settings(mode="tensor", computes=True)
    return Fp8Settings() if speed.uses_fp8 or is_stored_in_fp8 else None


def offloaded_attention(config: TrainConfig, layers: int) -> list[int]:
    """Blocks of which what self-attention gave waits in host memory."""
    if not config.small_card.gradient_checkpointing_cpu_offload or config.speed.activations == "full":
        return []
    return [i for i, policy in enumerate(parse_policies(config.speed.activations, layers)) if policy == "attention"]


def attach(config: TrainConfig, dit: WanDiT, graphs: GraphLog | None = None) -> None:
    """Put on what the settings ask for, in the order that it works in; `graphs` is told what is compiled.

    Compiled or not, a block that is swapped or whose input leaves the GPU is recomputed from outside of all that.
    """
    card, speed = config.small_card, config.speed
    compiled = speed.compiles
    moves = card.blocks_to_swap > 0 or card.gradient_checkpointing_cpu_offload
    policies = parse_policies("none" if moves else speed.activations, len(dit.blocks))
    if compiled or set(policies) != {"none"}:
        run_blocks(dit, policies, compiled=compiled, backend=speed.compile_backend, mode=speed.compile_mode,
                   graphs=graphs)
    if card.blocks_to_swap:
        swap = BlockSwap(dit, card.blocks_to_swap, ring=card.block_swap_ring_size)
        if card.blocks_to_swap <= card.block_swap_ring_size:
            log.warning("--blocks_to_swap %d saves nothing: the ring of %d buffers holds as much.", card.blocks_to_swap,
                        card.block_swap_ring_size)
        log.info("blocks in host memory: %s (%.2f GiB); ring on %s: %.2f GiB", ", ".join(map(str, swap.blocks)),
                 swap.host_bytes / 2**30, dit.device, swap.ring_bytes / 2**30)
    seen = offloaded_attention(config, len(dit.blocks))
    if card.gradient_checkpointing_cpu_offload:
        ActivationOffload(dit, attention=seen)
    elif moves:
        recompute_blocks(dit)  # around the swap
    log.info("blocks: %s, %s", "compiled" if compiled else "not compiled",
             f"recomputed{f', self-attention of {len(seen)} kept in host memory' * bool(seen)}" if moves
             else f"kept for the backward pass: {as_text(policies)}")
