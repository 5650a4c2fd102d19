"""Gradient checkpointing of all blocks: activations are recomputed in the backward pass."""

from torch import nn

from wan.memory.blocks import BlockRunner, run_blocks, stop_running_blocks
from wan.modules.dit import WanDiT


def enable_checkpointing(dit: WanDiT) -> None:
    """Recompute every block, with the hooks in and around it, when gradients are wanted (policy `full`)."""
    if not is_checkpointing(dit):
        run_blocks(dit, ["full"] * len(dit.blocks))


def disable_checkpointing(dit: WanDiT) -> None:
    """Undo `enable_checkpointing`."""
    stop_running_blocks(dit)


def is_checkpointing(dit: nn.Module) -> bool:
    """Whether `enable_checkpointing` is in force."""
    runner = vars(dit).get("run_block")
    return isinstance(runner, BlockRunner) and "full" in runner.policies
