"""The eight named points where a condition may act on the DiT, each a no-op.

`input_channels` has a second form, `added_patches`, for channels that the condition projects itself.
Tokens are `B L D` with L = F*(H/2)*(W/2) in (frame, row, column) order; extra tokens stand after the video tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from common.errors import ConditionError


@dataclass(frozen=True)
class Forward:
    """What every hook may know about the pass it acts in."""

    grid: tuple[int, int, int]
    """Tokens per axis of the video: (latent frames, latent height / 2, latent width / 2)."""
    video: slice
    """Where the video tokens stand in the token axis; extra tokens come after."""
    time_embedding: Tensor
    """`B 1 D`, or `B L D` with per-token timesteps: the float32 embedding that the head is modulated with."""
    modulation: Tensor
    """`B 1 6 D`, or `B L 6 D` per token: the float32 time projection that every block adds its own table to."""
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

    keeps_little: ClassVar[bool] = False
    """Whether the hooks around and between layers keep next to nothing for the backward pass (a sum does), so that
    computing them again would save no memory."""

    def input_channels(self, latents: Float[Tensor, "B C F H W"], forward: Forward
                       ) -> Float[Tensor, "B X F H W"] | None:
        """Extra channels that the base's own patch embedding takes after the latents (I2V 20, Fun-Control 32)."""
        return None

    def added_patches(self, latents: Float[Tensor, "B C F H W"], forward: Forward
                      ) -> Float[Tensor, "B D F h w"] | None:
        """Contribution of extra input channels that the condition projects with a convolution of its own.

        Added to the base's patch embedding: equal, by linearity, to widening it; the base file stays as it is.
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
        """Read block `i`'s q, k (after RoPE) and v; nothing is returned and nothing may be changed in place."""

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


class HookPoints(NamedTuple):
    """The states that act at each point, in the order of the conditions; collected once per forward."""

    input_channels: tuple[Hooks, ...] = ()
    added_patches: tuple[Hooks, ...] = ()
    after_patch_embedding: tuple[Hooks, ...] = ()
    extra_tokens: tuple[Hooks, ...] = ()
    before_block: tuple[Hooks, ...] = ()
    self_attention: tuple[Hooks, ...] = ()
    cross_attention: tuple[Hooks, ...] = ()
    after_cross_attention: tuple[Hooks, ...] = ()
    after_block: tuple[Hooks, ...] = ()


def collect(states: Iterable[Hooks]) -> HookPoints:
    """Sort states by the points that their classes override."""
    states = tuple(states)
    return HookPoints(*(tuple(state for state in states if getattr(type(state), point) is not getattr(Hooks, point))
                        for point in HookPoints._fields))


def checked(result: Tensor, like: Tensor, state: Hooks, point: str) -> Tensor:
    """`result` of a hook that must keep the shape and dtype of `like`; ConditionError names the hook otherwise."""
    if result.shape != like.shape or result.dtype != like.dtype:
        raise ConditionError(f"{type(state).__name__}.{point} returned {list(result.shape)} {result.dtype}; expected "
                             f"{list(like.shape)} {like.dtype}.")
    return result
