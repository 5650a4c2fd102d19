"""TeaCache: the DiT's blocks are skipped while the step's time changes little, and their last effect is used again.

Source: arXiv 2411.19108 and its Wan 2.1 port (`TeaCache4Wan2.1`), as OmniAvatar uses it, but with the coefficients of
the model that runs and one state for each pass of guidance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
import numpy as np
from torch import Tensor

from common.logs import get_logger
from wan.modules.dit import WanDiT
from wan.variants import Variant

log = get_logger(__name__)

COEFFICIENTS: dict[str, tuple[float, ...]] = {
    "Wan2.1-T2V-1.3B": (-5.21862437e+04, 9.23041404e+03, -5.28275948e+02, 1.36987616e+01, -4.99875664e-02),
    "Wan2.1-T2V-14B": (-3.03318725e+05, 4.90537029e+04, -2.65530556e+03, 5.87365115e+01, -3.15583525e-01),
    "Wan2.1-I2V-14B-480P": (2.57151496e+05, -3.54229917e+04, 1.40286849e+03, -1.35890334e+01, 1.32517977e-01),
    "Wan2.1-I2V-14B-720P": (8.10705460e+03, 2.13393892e+03, -3.72934672e+02, 1.66203073e+01, -4.17769401e-02),
}
"""Polynomial from the relative change of the time modulation to that of the blocks' output, highest power first."""

_PIXELS_BETWEEN_480P_AND_720P = 640 * 1024
_WIDTH_OF_14B = 5120


def coefficients_for(variant: Variant, size: tuple[int, int]) -> str:
    """Name of the coefficients for a model at a size (width, height); a width that none is published for takes the
    nearest of its family."""
    if variant.family in ("t2v", "fun_control"):
        return "Wan2.1-T2V-14B" if variant.dim >= _WIDTH_OF_14B else "Wan2.1-T2V-1.3B"
    is_large = size[0] * size[1] > _PIXELS_BETWEEN_480P_AND_720P
    return "Wan2.1-I2V-14B-720P" if is_large else "Wan2.1-I2V-14B-480P"


@dataclass
class Skipping:
    """Decides for one pass of one chunk, step after step, whether its blocks are skipped."""

    threshold: float
    coefficients: Sequence[float]
    _before: Tensor | None = None
    _drift: float = 0.0

    def skips(self, modulation: Tensor, *, is_last: bool) -> bool:
        """Whether this step may do without its blocks. The first and the last step are always computed.

        The polynomial of mean|change| / mean|before| is added up, and begun anew when it reaches the threshold.
        """
        before, self._before = self._before, modulation
        if before is None or is_last:
            self._drift = 0.0
            return False
        change = ((modulation - before).abs().mean() / before.abs().mean()).item()
        self._drift += float(np.polyval(self.coefficients, change))
        if self._drift < self.threshold:
            return True
        self._drift = 0.0
        return False


@dataclass
class TeaCache:
    """One chunk's cache: a decision and the blocks' last effect for each pass."""

    threshold: float
    coefficients: Sequence[float]
    last_timestep: float
    """Model time of the last step, which is always computed."""
    passes: dict[str, tuple[Skipping, Tensor | None]] = field(default_factory=dict)
    computed: int = 0
    skipped: int = 0

    def through(self, name: str, tokens: Float[Tensor, "B M D"], modulation: Tensor, timestep: float,
                blocks: Callable[[Tensor], Tensor]) -> Float[Tensor, "B M D"]:
        """The tokens after the blocks of pass `name`, computed or with the effect of the last computed step."""
        skipping, effect = self.passes.get(name) or (Skipping(self.threshold, self.coefficients), None)
        skips = skipping.skips(modulation, is_last=timestep == self.last_timestep)
        if skips and effect is not None:
            self.skipped += 1
            return tokens + effect
        result = blocks(tokens)
        self.computed += 1
        self.passes[name] = (skipping, result - tokens)
        return result

    def tell(self) -> None:
        """One line about how much was skipped."""
        log.info("TeaCache: %d of %d model calls skipped their blocks", self.skipped, self.skipped + self.computed)


def run_with_cache(dit: WanDiT, cache: TeaCache | None, name: str, timestep: float, *inputs: Any, **named: Any
                   ) -> Float[Tensor, "B C F H W"]:
    """`dit(*inputs, **named)` for the pass `name`, its blocks through `cache` where there is one."""
    if cache is None:
        return dit(*inputs, pass_name=name, **named)
    tokens, shared = dit.embed(*inputs, pass_name=name, **named)

    def blocks(hidden: Tensor) -> Tensor:
        for i in range(len(dit.blocks)):
            hidden = dit.run_block(i, hidden, shared)
        return hidden

    return dit.head(cache.through(name, tokens, shared.forward.modulation, timestep, blocks), shared)
