"""Step caches: a step may do without most blocks of the DiT and use their last effect again.

The effect of blocks is what they add to the tokens, `after - before`. A `Rule` decides for one pass of guidance, step
after step; a `StepCache` holds a rule and the last computed effect for each pass of one chunk. The first and the last
step are always computed, and so is the first call of a pass that joins later.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from common.logs import get_logger
from inference.guidance import Step
from wan.modules.dit import WanDiT

log = get_logger(__name__)

RunBlocks = Callable[[Tensor, int, int], Tensor]
"""(tokens, first, end) → the tokens after blocks first … end - 1, hooks included."""


@dataclass(frozen=True)
class Look:
    """What a rule sees of its pass before it decides."""

    step: Step
    modulation: Tensor
    """`B 1 6 D` or `B L 6 D`: the time projection that every block adds its own table to."""
    change: Float[Tensor, "B M D"] | None = None
    """What the leading blocks did to the tokens; None where the rule has none run."""

    @property
    def is_kept(self) -> bool:
        """Whether this step is computed whatever the rule says."""
        return self.step.index in (0, self.step.count - 1)


class Rule(ABC):
    """Decides for one pass of one chunk."""

    leading: ClassVar[int] = 0
    """Blocks that always run, and whose change the rule looks at."""

    @abstractmethod
    def skips(self, look: Look) -> bool:
        """Whether the blocks after the leading ones may be left out; asked once a step, also in kept ones."""

    def computed(self, look: Look, effect: Float[Tensor, "B M D"]) -> None:  # noqa: B027
        """Told after the blocks were run, with what they added."""


@dataclass
class _Pass:
    rule: Rule
    effect: Tensor | None = None


@dataclass
class StepCache:
    """One chunk's cache."""

    name: str
    """For messages."""
    make_rule: Callable[[str], Rule]
    """Rule of the pass of a name; called when the pass is first run."""
    sigmas: Sequence[float]
    """Share of noise at the start of every step, by which a call is known."""
    passes: dict[str, _Pass] = field(default_factory=dict)
    computed: int = 0
    skipped: int = 0

    def through(self, name: str, sigma: float, tokens: Float[Tensor, "B M D"], modulation: Tensor, *,
                blocks: RunBlocks, count: int) -> Float[Tensor, "B M D"]:
        """The tokens after all `count` blocks of pass `name`, computed or with the effect of the last computed step."""
        if name not in self.passes:
            self.passes[name] = _Pass(self.make_rule(name))
        one = self.passes[name]
        leading = min(one.rule.leading, count)
        led = blocks(tokens, 0, leading) if leading else tokens
        step = Step(self.sigmas.index(sigma), len(self.sigmas), sigma)
        look = Look(step, modulation, led - tokens if leading else None)
        may_skip = one.rule.skips(look)
        if may_skip and one.effect is not None and not look.is_kept:
            self.skipped += 1
            return led + one.effect
        one.effect = None  # its memory is free before the new one is made
        result = blocks(led, leading, count)
        one.effect = result - led
        one.rule.computed(look, one.effect)
        self.computed += 1
        return result

    @property
    def calls(self) -> int:
        """Calls of the model so far."""
        return self.computed + self.skipped

    def tell(self) -> None:
        """One line about how much was skipped."""
        log.info("%s: %d of %d model calls skipped their blocks", self.name, self.skipped, self.calls)


def run_with_cache(dit: WanDiT, cache: StepCache | None, name: str, sigma: float, *inputs: Any, **named: Any
                   ) -> Float[Tensor, "B C F H W"]:
    """`dit(*inputs, **named)` for the pass `name`, its blocks through `cache` where there is one."""
    if cache is None:
        return dit(*inputs, pass_name=name, **named)
    tokens, shared = dit.embed(*inputs, pass_name=name, **named)

    def blocks(hidden: Tensor, first: int, end: int) -> Tensor:
        for i in range(first, end):
            hidden = dit.run_block(i, hidden, shared)
        return hidden

    tokens = cache.through(name, sigma, tokens, shared.forward.modulation, blocks=blocks, count=len(dit.blocks))
    return dit.head(tokens, shared)
