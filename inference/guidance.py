"""Guidance: which passes of the model a step needs, and how their velocities become one.

A `Guidance` knows nothing of models. New kinds (a scale of its own for the sound, intervals, annealing) are new
classes here; the sampler and the pipeline only ask `all_passes`, `passes` and `combine`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Step:
    """One step of sampling: `index` of `count`, and the share of noise at its start."""

    index: int
    count: int
    sigma: float


@dataclass(frozen=True)
class Pass:
    """One call of the model in a step: what it is conditioned on."""

    name: str
    """Reaches the model's hooks as `Forward.pass_name`."""
    negative_text: bool = False
    without: frozenset[str] = frozenset()
    """Features that are given in their absent form (silence for sound)."""


CONDITIONAL = Pass("conditional")


class Guidance(Protocol):
    """How a step's velocity is made."""

    @property
    def all_passes(self) -> tuple[Pass, ...]:
        """Every pass that any step may ask for; each is prepared once per clip."""
        ...

    def passes(self, step: Step) -> tuple[Pass, ...]:
        """The passes that `step` runs."""
        ...

    def combine(self, velocities: Mapping[str, Tensor], step: Step) -> Tensor:
        """One velocity from those of `passes(step)`, by the pass's name."""
        ...


@dataclass(frozen=True)
class ClassifierFree:
    """v = v(negative) + scale * (v(positive) - v(negative)); scale 1 is one pass and no guidance.

    The negative pass has the negative text and lacks the features in `dropped`; with the sound dropped this is
    OmniAvatar's two-pass guidance. Pictures are kept in both passes, as Wan and OmniAvatar do.
    """

    scale: float
    dropped: frozenset[str] = frozenset()

    @property
    def all_passes(self) -> tuple[Pass, ...]:
        """The conditional pass, then the unconditional one unless the scale is 1."""
        if self.scale == 1:
            return (CONDITIONAL,)
        return (CONDITIONAL, Pass("unconditional", negative_text=True, without=self.dropped))

    def passes(self, step: Step) -> tuple[Pass, ...]:
        """The same passes in every step."""
        return self.all_passes

    def combine(self, velocities: Mapping[str, Tensor], step: Step) -> Tensor:
        """The guided velocity."""
        positive = velocities["conditional"]
        if "unconditional" not in velocities:
            return positive
        negative = velocities["unconditional"]
        return negative + self.scale * (positive - negative)
