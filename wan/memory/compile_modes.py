"""torch.compile's modes and what they go with; imports no torch, for the sake of flags."""

from collections.abc import Iterator
from typing import Literal

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
RECORDING = ("reduce-overhead", "max-autotune")
"""Those that record CUDA graphs: each compiled pass of a block becomes one launch."""
HELP = ("torch.compile's mode (default: default); reduce-overhead records CUDA graphs, for small models and short "
        "clips, where the GPU waits for the host (docs/performance.md)")
DIFFERS = "what records CUDA graphs (reduce-overhead, max-autotune) is refused beside --blocks_to_swap"


def mode_problems(mode: str | None, moving: str) -> Iterator[str]:
    """A sentence where graphs would be recorded of what moves; `moving` names the flag that moves it, if one does."""
    if mode in RECORDING and moving:
        yield (f"--compile_mode {mode} records CUDA graphs, which fix where everything lies, and {moving} moves it. "
               "Leave one of the two out.")
