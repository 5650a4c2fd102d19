"""Which graphs the compiled blocks made, and for what: one that is made late keeps somebody waiting for a minute."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Use(NamedTuple):
    """What a block was run for: each of these has graphs of its own."""

    is_training: bool
    """With a backward pass to come; else only looked at (validation, previews, generation)."""
    samples: int
    tokens: int

    @property
    def words(self) -> str:
        """For messages."""
        many = f"{self.samples} x {self.tokens} tokens" if self.samples > 1 else f"{self.tokens} tokens"
        return many if self.is_training else f"{many}, looking"


@dataclass
class GraphLog:
    """Filled by the blocks' runner while it runs; `take` empties it."""

    uses: set[Use] = field(default_factory=set)
    """Since the last `take`."""
    made: Counter[Use] = field(default_factory=Counter)
    """Graphs since the last `take`."""
    failures: list[str] = field(default_factory=list)
    """Parts of a block that could not be made one graph (a graph break among others), and run uncompiled: why."""
    skipped: int = 0
    """Blocks that were run uncompiled, because a condition acts inside their attention."""

    def note(self, tokens: Tensor, made: int) -> None:
        """A compiled part was run on `tokens` and made so many graphs for it."""
        use = use_of(tokens)
        self.uses.add(use)
        if made:
            self.made[use] += made

    def take(self) -> tuple[set[Use], Counter[Use]]:
        """Uses and graphs since the last call."""
        uses, made = self.uses, self.made
        self.uses, self.made = set(), Counter()
        return uses, made


def use_of(tokens: Tensor) -> Use:
    """What a block that is run on `tokens` now is run for."""
    return Use(torch.is_grad_enabled(), tokens.shape[0], tokens.shape[1])


def graphs_made() -> int:
    """Graphs that torch has handed to a compiler in this process."""
    import torch._dynamo.utils

    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
