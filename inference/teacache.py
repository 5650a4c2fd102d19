"""TeaCache: the DiT's blocks are skipped while the step's time changes little.

Source: arXiv 2411.19108 and its Wan 2.1 port (`TeaCache4Wan2.1`), as OmniAvatar uses it, but with the coefficients of
the model that runs and one state for each pass of guidance.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from inference.step_cache import Look, Rule
from wan.variants import Variant

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
class TeaCache(Rule):
    """Skips while the summed change of the time modulation, brought to that of the blocks' output, is small."""

    threshold: float
    coefficients: Sequence[float]
    _before: Tensor | None = None
    _drift: float = 0.0

    def skips(self, look: Look) -> bool:
        """As `decide`, by the step's modulation."""
        return self.decide(look.modulation, is_last=look.step.index == look.step.count - 1)

    def decide(self, modulation: Tensor, *, is_last: bool) -> bool:
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
