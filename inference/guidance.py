"""Guidance: which passes of the model a step needs, and how their velocities become one.

A `Guidance` knows nothing of models; the sampler and the pipeline only ask `all_passes`, `passes` and `combine`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
import math
from typing import Protocol

from torch import Tensor

from inference.choices import Annealing, Order, SkipMode


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


def is_guided(step: Step, mode: SkipMode, share: float) -> bool:
    """Whether musubi-tuner guides this step under `--cfg_skip_mode mode --cfg_apply_ratio share`.

    n = floor(share · count) steps are guided: the last n (`early`), the first n (`late`), those around the middle
    (`early_late`), or all but count - n around the middle (`middle`). `alternate` adds the share up from step to step
    and guides whenever the sum reaches 1, of which it is then relieved.
    """
    guided = int(step.count * share)
    if mode == "early":
        return step.index >= step.count - guided
    if mode == "late":
        return step.index < guided
    if mode == "early_late":
        return 0 <= step.index - (step.count - guided) // 2 < guided
    if mode == "middle":
        skipped = step.count - guided
        return not 0 <= step.index - (step.count - skipped) // 2 < skipped
    total, reached = 0.0, mode == "none"
    for _ in range(step.index + 1 if mode == "alternate" else 0):
        total += share
        reached = total >= 1
        total -= reached
    return reached


@dataclass(frozen=True)
class Scale:
    """Strength of guidance over the steps; 1 is none.

    `annealing` lets it fall from `value` towards 1: linearly, s·(1-p) + p with p = index / steps, or as half a cosine
    (OmniHuman-1). Outside `interval` (shares of the steps, the first included, the last not) it is 1, and in steps
    that `skip` (mode and share, see `is_guided`) leaves out.
    """

    value: float
    annealing: Annealing = "none"
    interval: tuple[float, float] = (0.0, 1.0)
    skip: tuple[SkipMode, float] | None = None

    def at(self, step: Step) -> float:
        """Strength in one step."""
        share = step.index / step.count
        if not self.interval[0] <= share < self.interval[1]:
            return 1.0
        if self.skip is not None and not is_guided(step, *self.skip):
            return 1.0
        if self.annealing == "none":
            return self.value
        kept = 1 - share if self.annealing == "linear" else 0.5 * (1 + math.cos(math.pi * share))
        return 1 + (self.value - 1) * kept

    @property
    def is_one(self) -> bool:
        """Whether it is 1 in every step."""
        return self.value == 1

    @property
    def is_zero(self) -> bool:
        """Whether it is 0 in every step."""
        return self == Scale(0.0)


ONE = Scale(1.0)


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


class Chained(ABC):
    """v = v0 + s1·(v1 - v0) + s2·(v2 - v1): each link adds one condition to the pass before it, with its own strength.

    A pass that the sum does not need is not run: one whose strength is also the next link's (it cancels out), and a
    last one of strength 0.
    """

    @property
    @abstractmethod
    def links(self) -> tuple[tuple[Pass, Scale], ...]:
        """Passes from the poorest to the fully conditioned one, each with the strength of its difference; the first
        one's is 1."""

    @property
    def all_passes(self) -> tuple[Pass, ...]:
        """The passes that some step may run, the fully conditioned one first."""
        links = list(self.links)
        while len(links) > 1 and links[-1][1].is_zero:
            links.pop()
        following = [scale for _, scale in links[1:]]
        kept = [one for (one, scale), after in zip(links, following, strict=False)
                if not (scale == after or (scale.is_one and after.is_one))]
        return (links[-1][0], *reversed(kept))

    def passes(self, step: Step) -> tuple[Pass, ...]:
        """The passes that this step's strengths leave, the fully conditioned one first."""
        return tuple(one for one, _ in reversed(self._needed(step)))

    def combine(self, velocities: Mapping[str, Tensor], step: Step) -> Tensor:
        """The guided velocity."""
        (first, _), *rest = self._needed(step)
        before = total = velocities[first.name]
        for one, scale in rest:
            total = total + scale * (velocities[one.name] - before)
            before = velocities[one.name]
        return total

    def _needed(self, step: Step) -> list[tuple[Pass, float]]:
        links = [(one, scale.at(step)) for one, scale in self.links]
        while len(links) > 1 and links[-1][1] == 0:
            links.pop()
        return [link for i, link in enumerate(links) if i == len(links) - 1 or link[1] != links[i + 1][1]]


@dataclass(frozen=True)
class ClassifierFree(Chained):
    """v = v(negative) + scale * (v(positive) - v(negative)); scale 1 is one pass and no guidance.

    The negative pass has the negative text and lacks the features in `dropped`; with the sound dropped this is
    OmniAvatar's two-pass guidance. Pictures are kept in both passes, as Wan and OmniAvatar do.
    """

    scale: Scale | float
    dropped: frozenset[str] = frozenset()

    @property
    def links(self) -> tuple[tuple[Pass, Scale], ...]:
        """Unconditional, then conditional."""
        scale = self.scale if isinstance(self.scale, Scale) else Scale(self.scale)
        return ((_unconditional(self.dropped), ONE), (CONDITIONAL, scale))


@dataclass(frozen=True)
class TextThenAudio(Chained):
    """Text and sound with a strength of their own: two or three passes.

    Order `omniavatar`: v = v(neg, 0) + s_t·[v(pos, 0) - v(neg, 0)] + s_a·[v(pos, a) - v(pos, 0)].
    Order `multitalk`:  v = v(neg, 0) + s_a·[v(neg, a) - v(neg, 0)] + s_t·[v(pos, a) - v(neg, a)].
    Equal strengths are `ClassifierFree` in both. `dropped`: the features that the sound enters by.
    """

    text: Scale
    audio: Scale
    dropped: frozenset[str]
    order: Order = "omniavatar"

    @property
    def links(self) -> tuple[tuple[Pass, Scale], ...]:
        """Unconditional, the one that has text or sound alone, conditional."""
        if self.order == "omniavatar":
            middle, scales = Pass("text", without=self.dropped), (self.text, self.audio)
        else:
            middle, scales = Pass("audio", negative_text=True), (self.audio, self.text)
        return ((_unconditional(self.dropped), ONE), (middle, scales[0]), (CONDITIONAL, scales[1]))


def _unconditional(dropped: frozenset[str]) -> Pass:
    return Pass("unconditional", negative_text=True, without=dropped)
