"""What the gate compares: ways to compute a training step that change numbers. A line of `VARIANTS` adds one."""

from dataclasses import dataclass

REFERENCE = "bf16"
"""What the others are compared with: bfloat16, each operation by itself."""
YARDSTICK = "float32"
"""What the reference is compared with: how much of a difference ordinary rounding makes."""


@dataclass(frozen=True)
class Variant:
    """One way to compute, as flags of train_network.py."""

    name: str
    flags: tuple[str, ...]

    @property
    def is_judged(self) -> bool:
        """Whether it must pass; reference and yardstick are what it is measured by."""
        return self.name not in (REFERENCE, YARDSTICK)

    @property
    def against(self) -> str | None:
        """The variant that its numbers are compared with."""
        return {REFERENCE: YARDSTICK, YARDSTICK: None}.get(self.name, REFERENCE)

    @property
    def multiplies_in_fp8(self) -> bool:
        """Whether products with frozen weights are in float8."""
        return "--fp8_fast" in self.flags

    @property
    def is_compiled(self) -> bool:
        """Whether blocks are compiled."""
        return "--compile" in self.flags and self.flags[self.flags.index("--compile") + 1] == "on"

    @property
    def attention(self) -> str:
        """Attention back end."""
        return self.flags[self.flags.index("--attn_mode") + 1] if "--attn_mode" in self.flags else "sdpa"


_BF16 = ("--mixed_precision", "bf16")
_PLAIN, _COMPILED = ("--compile", "off"), ("--compile", "on")
"""Always said: left to itself, a GPU's run is compiled where it is long enough."""
VARIANTS = {one.name: one for one in (
    Variant(YARDSTICK, ("--mixed_precision", "no", *_PLAIN)),
    Variant(REFERENCE, (*_BF16, *_PLAIN)),
    Variant("compile", (*_BF16, *_COMPILED)),
    Variant("fp8", (*_BF16, *_PLAIN, "--fp8_fast")),
    Variant("compile+fp8", (*_BF16, *_COMPILED, "--fp8_fast")),
)}
"""By name, in the order of the table."""
