"""MagCache: blocks are skipped while the magnitude of their effect, known beforehand, has hardly changed since.

Source: arXiv 2506.09045 and its Wan 2.1 port (`MagCache4Wan2.1`). With a model's ratios r_i = mean of |effect_i| /
|effect_i-1| over the tokens, reusing the effect of step c in step n errs by |1 - r_c+1 ··· r_n|; the errors of the
steps since c add up. Unlike there, the last step is always computed, and a pass that guidance left out for some steps
counts those too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from common.atomic import write_text
from common.errors import ConfigError
from inference.guidance import CONDITIONAL
from inference.magnitude_ratios import PUBLISHED
from inference.step_cache import Look, Rule
from wan.variants import Variant

_PUBLISHED_WIDTHS = {1536: "Wan2.1-T2V-1.3B", 5120: "Wan2.1-T2V-14B"}


@dataclass(frozen=True)
class MagnitudeRatios:
    """Ratios of a model's passes, one for each step of the run that they were measured in; the first is 1."""

    passes: Mapping[str, Sequence[float]]
    source: str
    """For messages."""

    def of(self, name: str, steps: int) -> tuple[float, ...]:
        """Ratios of pass `name` for a run of `steps`: those of the nearest steps, as MagCache takes them.

        A pass that was not measured takes the conditional one's.
        """
        known = self.passes.get(name, self.passes[CONDITIONAL.name])
        if steps == 1:
            return (known[-1],)
        places = np.round(np.arange(steps) * ((len(known) - 1) / (steps - 1))).astype(int)
        return tuple(known[i] for i in places)


@dataclass
class MagCache(Rule):
    """Skips while the summed error stays below `threshold`, for at most `longest` steps together.

    The first `retention` share of the steps is computed.
    """

    threshold: float
    ratios: Sequence[float]
    """One for each step."""
    longest: int = 2
    retention: float = 0.2
    _cached: int | None = None
    """Step whose effect would be used."""

    def skips(self, look: Look) -> bool:
        """Whether the effect of the last computed step is still good enough."""
        index = look.step.index
        if self._cached is None or index < self.retention * look.step.count or index - self._cached > self.longest:
            return False
        product, error = 1.0, 0.0
        for ratio in self.ratios[self._cached + 1:index + 1]:
            product *= ratio
            error += abs(1 - product)
        return error < self.threshold

    def computed(self, look: Look, effect: Tensor) -> None:
        """Note the step."""
        self._cached = look.step.index


@dataclass
class Calibration(Rule):
    """Skips nothing and measures the ratios of its pass."""

    _norms: Float[Tensor, "B M"] | None = None
    _ratios: list[Tensor] = field(default_factory=list)

    def skips(self, look: Look) -> bool:
        """Never."""
        return False

    def computed(self, look: Look, effect: Float[Tensor, "B M D"]) -> None:
        """Compare the lengths of the tokens' changes with those of the step before; read from the device at the end."""
        norms = torch.linalg.vector_norm(effect, dim=-1, dtype=torch.float32)
        before, self._norms = self._norms, norms
        self._ratios.append(norms.new_ones(()) if before is None else (norms / before).mean())

    def ratios(self) -> list[float]:
        """What was measured, one for each step that the pass ran in."""
        return [round(ratio.item(), 5) for ratio in self._ratios]


def published_ratios(variant: Variant, size: tuple[int, int]) -> MagnitudeRatios | None:
    """The published ratios of a model at a size (width, height); None for a model that none are published for."""
    from inference.teacache import coefficients_for

    name = _PUBLISHED_WIDTHS.get(variant.dim) if variant.family == "t2v" else None
    if variant.family == "i2v" and variant.dim == max(_PUBLISHED_WIDTHS):
        name = coefficients_for(variant, size)
    return None if name is None else MagnitudeRatios(PUBLISHED[name], f"MagCache's ratios of {name}")


def identity_of_model(variant: Variant) -> dict[str, Any]:
    """What ratios are told apart by."""
    return {"family": variant.family, "dim": variant.dim, "layers": variant.layers}


def write_ratios(path: Path, passes: Mapping[str, Sequence[float]], variant: Variant, run: Mapping[str, Any]) -> None:
    """Write measured ratios as JSON; `run` tells solver, steps, shift and size of the run."""
    document = {"about": "Magnitude ratios for --step_cache magcache; give this file to --step_cache_ratios.",
                "model": identity_of_model(variant), "run": dict(run),
                "ratios": {name: list(ratios) for name, ratios in passes.items()}}
    write_text(path, json.dumps(document, indent=1) + "\n")


def read_ratios(path: Path, variant: Variant) -> MagnitudeRatios:
    """Ratios that `write_ratios` wrote for a model like `variant`; ConfigError for another's, and for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model = document["model"]
        passes = {str(name): [float(one) for one in ratios] for name, ratios in document["ratios"].items()}
    except FileNotFoundError as error:
        raise ConfigError(f"--step_cache_ratios {path}: no such file. Measure one by --step_cache_calibrate {path}."
                          ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--step_cache_ratios {path}: not a file of --step_cache_calibrate ({error!r}). Measure one "
                          "again.") from error
    if model != identity_of_model(variant):
        raise ConfigError(f"--step_cache_ratios {path}: measured on {_told(model)}; this model is "
                          f"{_told(identity_of_model(variant))}. Measure it by --step_cache_calibrate.")
    if not passes.get(CONDITIONAL.name) or not all(np.isfinite(one).all() and len(one) for one in passes.values()):
        raise ConfigError(f"--step_cache_ratios {path}: lacks ratios of the pass '{CONDITIONAL.name}', or holds some "
                          "that are no numbers. Measure it again by --step_cache_calibrate.")
    return MagnitudeRatios(passes, str(path))


def _told(model: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in model.items())
