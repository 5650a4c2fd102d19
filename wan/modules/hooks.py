"""The eight named points where a condition may act on the DiT, each a no-op.

Tokens are `B L D` with L = F*(H/2)*(W/2) in (frame, row, column) order; extra tokens stand after the video tokens.
"""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Forward:
    """What every hook may know about the pass it acts in."""

    grid: tuple[int, int, int]
    """Tokens per axis of the video: (latent frames, latent height / 2, latent width / 2)."""
    video: slice
    """Where the video tokens stand in the token axis; extra tokens come after."""
    time_embedding: Tensor
    """`B D`, or `B L D` with per-token timesteps: the embedding that the head is modulated with."""
    modulation: Tensor
    """`B 6 D`, or `B L 6 D` per token: the time projection that every block adds its own table to."""
    text: Tensor
    """`B 512 D`: embedded text tokens, padding included."""
    pass_name: str = "conditional"
    """`conditional`, `unconditional`, or another name that guidance gives to the pass."""


class ExtraTokens(NamedTuple):
    """Tokens that a condition adds to the sequence."""

    tokens: Float[Tensor, "B M D"]
    positions: Int[Tensor, "M 3"]
    """RoPE positions (frame, row, column); negative ones are allowed."""
    timesteps: Float[Tensor, " M"] | None = None
    """0…1000; None means 0, clean."""


class Hooks:
    """Base of a condition's state: override the points that are needed, and only those.

    The DiT calls a point only on states whose class overrides it, so an unused point costs nothing.
    All tensors are in the DiT's compute dtype and on its device.
    """

    def input_channels(self, latents: Float[Tensor, "B C F H W"], forward: Forward | None
                       ) -> Float[Tensor, "B X F H W"] | None:
        """Extra channels that the base's own patch embedding takes after the latents (I2V 20, Fun-Control 32)."""
        return None

    def added_patches(self, latents: Float[Tensor, "B C F H W"]) -> Float[Tensor, "B D F h w"] | None:
        """Contribution of extra input channels that the condition projects with a convolution of its own.

        Equal, by linearity, to widening the base's patch embedding; the base file stays as it is.
        """
        return None

    def after_patch_embedding(self, tokens: Float[Tensor, "B L D"], forward: Forward) -> Float[Tensor, "B L D"]:
        """Change the video tokens before the first block."""
        return tokens

    def extra_tokens(self, forward: Forward) -> ExtraTokens | None:
        """Tokens to append; they are removed before the head."""
        return None

    def before_block(self, i: int, tokens: Float[Tensor, "B L D"], forward: Forward) -> Float[Tensor, "B L D"]:
        """Change the tokens that block `i` receives."""
        return tokens

    def self_attention(self, i: int, query: Float[Tensor, "B L N K"], key: Float[Tensor, "B L N K"],
                       value: Float[Tensor, "B L N K"], forward: Forward) -> None:
        """Read block `i`'s q, k (after RoPE) and v."""

    def cross_attention(self, i: int, query: Float[Tensor, "B L N K"], forward: Forward
                        ) -> Float[Tensor, "B L N K"] | None:
        """A term added to block `i`'s text attention before its output projection."""
        return None

    def after_cross_attention(self, i: int, tokens: Float[Tensor, "B L D"], forward: Forward
                              ) -> Float[Tensor, "B L D"]:
        """Change the tokens between cross-attention and feed-forward of block `i`."""
        return tokens

    def after_block(self, i: int, tokens: Float[Tensor, "B L D"], forward: Forward) -> Float[Tensor, "B L D"]:
        """Change the tokens that block `i` returns."""
        return tokens
