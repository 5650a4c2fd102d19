"""Settings that fit a large model on to a small card; imports no torch, so that `--help` stays quick."""

from common.config import Section, flag
from wan.memory.policy_names import policies_of


class SmallCardSection(Section):
    """Small cards: weights and activations that wait in host memory."""

    blocks_to_swap: int = flag(
        0, "blocks of the base, evenly spread, whose weights wait in page-locked host memory and are brought just "
           "ahead of use; up to all of them (14B: 40 of 0.34 GiB with --fp8_base, 0.65 without). Needs "
           "--gradient_checkpointing; numbers do not change (docs/performance.md)", ge=0,
        differs="always one way and page-locked, spread over the model as --block_swap_h2d_only does; all blocks may "
                "be swapped")
    block_swap_ring_size: int = flag(
        2, "buffers on the GPU that swapped blocks take turns in: 2 computes with one while the other is filled, 1 "
           "saves a block's memory and waits for every copy", ge=1)
    gradient_checkpointing_cpu_offload: bool = flag(
        False, "with --gradient_checkpointing, let the blocks' inputs wait in host memory too: 12 GiB less on the GPU "
               "for 14B at 480x832x81; copied beside the computing, numbers do not change. With --memory attention "
               "what self-attention gave waits there as well and is not computed again (changes rounding in compiled "
               "blocks)",
        differs="page-locked and asynchronous, both ways")

    @property
    def moving(self) -> str:
        """Name of a flag that is on and moves weights or inputs of blocks; empty where none is."""
        if self.blocks_to_swap:
            return "--blocks_to_swap"
        return "--gradient_checkpointing_cpu_offload" if self.gradient_checkpointing_cpu_offload else ""

    def problems_with(self, layers: int, activations: str) -> list[str]:
        """What does not go together with a base of so many blocks and these policies (`SpeedSection.activations`)."""
        may_wait = self.gradient_checkpointing_cpu_offload and activations != "auto"
        recomputes = activations == "full" or (
            may_wait and not set(policies_of(activations, layers)) - {"attention", "full"})
        found = []
        if self.blocks_to_swap > layers:
            found.append(f"--blocks_to_swap {self.blocks_to_swap}: this base has {layers} blocks. Use at most that.")
        for name in ("blocks_to_swap", "gradient_checkpointing_cpu_offload"):
            if getattr(self, name) and not recomputes:
                found.append(f"--{name} needs --gradient_checkpointing (that is, --memory full; with "
                             "--gradient_checkpointing_cpu_offload also --memory attention): blocks that are not "
                             "computed again in the backward pass keep their weights and activations on the GPU. "
                             "Add it.")
        return found
