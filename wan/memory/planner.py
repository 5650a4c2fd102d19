"""Which activation policy a step can afford: bytes by closed form, and the fastest mix of policies that fits.

All bytes are of bfloat16 tokens; one unit N is tokens x width x 2 bytes, f and d are the widths of feed-forward and
of the model.
"""

from dataclasses import dataclass
import itertools

from wan.memory.policies import Policy
from wan.variants import Variant

ALL_UNITS = 20.55
"""Units that a block keeps when nothing is recomputed and f/d is 2.7: 41.1 bytes a token and channel, 14B compiled on
an H200. Uncompiled it is the same, since norms keep their input alone (`wan.modules.rows`)."""
UNITS_PER_RATIO = 2.05
"""More for each f/d of a wider feed-forward: 1.3B compiled keeps 53.9 bytes."""
TIMES_UNITS = 10.0
"""More, uncompiled, where tokens have timesteps of their own: norms are modulated operation by operation, and there are
as many scales and gates as tokens, in float32."""
TABLE_UNITS = 12.0
"""Six rows a token in float32, which all blocks share there, compiled or not."""
WORK = 1.21
"""A block that is recomputed works with this many times what it would keep (measured: 7.8 GiB for 6.4, 14B compiled at
81 frames on an H200)."""
MARGIN = 0.04
"""Share of the memory that is left for holes in torch's allocator and for the libraries."""
FASTEST: tuple[Policy, ...] = ("none", "matmuls", "attention", "full")


@dataclass(frozen=True)
class Step:
    """What decides the activations of a step."""

    variant: Variant
    tokens: int
    """Of all samples of the largest batch."""
    compiled: bool
    own_times: bool = False
    """Whether tokens have timesteps of their own (given frames that stand at 0)."""

    @property
    def unit(self) -> int:
        """Bytes of all tokens once."""
        return self.tokens * self.variant.dim * 2

    def kept(self, policy: Policy) -> float:
        """Bytes that one block keeps for the backward pass."""
        ratio = self.variant.ffn_dim / self.variant.dim
        image = 1.0 if self.variant.has_image_branch else 0.0  # what attention to the CLIP tokens gives
        if policy == "none":
            # Uncompiled also the sum of what attention to the CLIP tokens and to the text gave.
            more = 0.0 if self.compiled else image + TIMES_UNITS * self.own_times
            units = ALL_UNITS + UNITS_PER_RATIO * (ratio - 2.7) + image + more
        elif policy == "matmuls":
            # Compiled: block input, q, k, v, attention, x, cross q, cross attention, x, the feed-forward's middle. Else
            # results of products are kept as they came: of eight linears and, beside them, of LoRA's second products.
            units = (9 + ratio if self.compiled else 17 + 2 * ratio) + image
        else:
            units = {"attention": 2.0, "full": 1.0}[policy]
        return units * self.unit

    def activations(self, policies: list[Policy]) -> int:
        """Bytes at the peak of a step: what all blocks keep, and what the block in work needs beside it."""
        work = 0.0 if set(policies) == {"none"} else WORK * self.kept("none")
        shared = 2 + TABLE_UNITS * self.own_times
        return round(sum(map(self.kept, policies)) + work + shared * self.unit)


def choose(step: Step, room: int) -> list[Policy] | None:
    """The fastest policies for all blocks whose activations fit into `room` bytes; None where not even `full` does.

    Blocks go over from the next cheaper policy to the faster one, as many as fit (measured on an H200, compiled:
    matmuls 219, attention 241, full 288 ms a block, nothing recomputed 219: so `none` is not mixed with `matmuls`).
    Uncompiled, `matmuls` keeps more than `none` and is left out.
    """
    blocks = step.variant.layers
    if step.activations(["none"] * blocks) <= room:
        return ["none"] * blocks
    others = [policy for policy in FASTEST if policy != ("none" if step.compiled else "matmuls")]
    for faster, cheaper in itertools.pairwise(others):
        for count in range(blocks, -1, -1):
            mix: list[Policy] = [faster] * count + [cheaper] * (blocks - count)
            if step.activations(mix) <= room:
                return mix
    return None


def as_text(policies: list[Policy]) -> str:
    """The policies as `parse_policies` reads them."""
    parts: list[tuple[Policy, int]] = []
    for policy in policies:
        if parts and parts[-1][0] == policy:
            parts[-1] = policy, parts[-1][1] + 1
        else:
            parts.append((policy, 1))
    return ",".join([*(f"{policy}:{count}" for policy, count in parts[:-1]), parts[-1][0]])
