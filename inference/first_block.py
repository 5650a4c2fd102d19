"""First-block cache: the first block always runs, and the rest is skipped while its change of the tokens stays alike.

Source: ParaAttention's "first block cache", as diffusers' `FirstBlockCacheConfig` states it: the change is compared
with that of the last computed step, whose effect would be used again, so that small changes cannot add up unseen.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
import torch
from torch import Tensor

from inference.step_cache import Look, Rule


def relative_l1(now: Float[Tensor, "*rest"], before: Float[Tensor, "*rest"]) -> float:
    """mean|now - before| / mean|before|, summed in float32."""
    change = (now - before).abs().mean(dtype=torch.float32)
    return (change / before.abs().mean(dtype=torch.float32)).item()


@dataclass
class FirstBlock(Rule):
    """Skips where the first block's change differs from that of the last computed step by less than `threshold`."""

    leading: ClassVar[int] = 1

    threshold: float
    _before: Float[Tensor, "B M D"] | None = None

    def skips(self, look: Look) -> bool:
        """Whether the first block did nearly what it did then."""
        if self._before is None or look.is_kept:
            return False
        assert look.change is not None
        return relative_l1(look.change, self._before) < self.threshold

    def computed(self, look: Look, effect: Tensor) -> None:
        """Remember the first block's change of this step."""
        self._before = look.change
