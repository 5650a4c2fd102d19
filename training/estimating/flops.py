"""Floating point operations of a training step; multiply and add count as two.

Forward per block of width d and feed-forward f over S tokens: linears 8 S d² (self q k v o) + 4 S d² (cross q o) +
4 S d f, keys and values of the context, attention 4 S² d + 4 S C d with C context tokens. A LoRA step with a frozen
base adds the linears' input gradients (as much as their forward), 2.5 times the attention for its backward, and with
checkpointing of whole blocks a second forward. LoRA, conditions and embeddings are left out: a few in a hundred.
"""

from dataclasses import dataclass

from wan.variants import Variant


@dataclass(frozen=True)
class Flops:
    """Of one sample's forward pass."""

    linears: float
    """Products on the video's tokens."""
    context: float
    """Keys and values of text and picture tokens, for which no input gradient is needed."""
    attention: float

    @property
    def forward(self) -> float:
        """All of it."""
        return self.linears + self.context + self.attention

    def step(self, checkpointing: bool) -> float:
        """Forward, backward and what is recomputed."""
        return self.forward * (2 if checkpointing else 1) + self.linears + 2.5 * self.attention


def flops(variant: Variant, tokens: int) -> Flops:
    """Operations of a forward pass over `tokens` video tokens."""
    d, context = variant.dim, variant.text_length + variant.image_tokens
    return Flops(linears=variant.layers * tokens * (12 * d * d + 4 * d * variant.ffn_dim),
                 context=variant.layers * 4 * context * d * d,
                 attention=variant.layers * 4 * tokens * d * (tokens + context))
