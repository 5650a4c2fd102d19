"""Tokens by latent frame, windows of sound around each, and products in the tokens' dtype: for cross-attention."""

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.features import AUDIO_HALO
from common.timebase import VAE_TEMPORAL_STRIDE
from wan.modules.hooks import Forward

LATER_WINDOW = VAE_TEMPORAL_STRIDE + 2 * AUDIO_HALO
"""Rows that a latent frame after the first one hears: its four video frames and two on each side."""
FIRST_WINDOW = 1 + 2 * AUDIO_HALO
"""Rows that the first latent frame hears: its one video frame and two on each side."""


def windows(rows: Float[Tensor, "B M *rest"]) -> tuple[Float[Tensor, "B 1 W0 *rest"], Float[Tensor, "B T W *rest"]]:
    """Rows -2 … 2 for latent frame 0, and 4t-5 … 4t+2 for each later latent frame t (audio.md 2.2, 5.10 j).

    `rows` begin `AUDIO_HALO` before the clip and end as many after it.
    """
    first = rows[:, None, :FIRST_WINDOW]
    start = 1  # latent frame 1 begins with video frame 1; -1 is the first row that it hears
    if rows.shape[1] - start < LATER_WINDOW:
        return first, rows.new_zeros(len(rows), 0, LATER_WINDOW, *rows.shape[2:])
    later = rows[:, start:].unfold(1, LATER_WINDOW, VAE_TEMPORAL_STRIDE)  # B T *rest W
    return first, later.movedim(-1, 2)


def by_frame(tokens: Float[Tensor, "B L D"], forward: Forward) -> Float[Tensor, "BF P D"]:
    """The video tokens, each latent frame a sample of its own."""
    return rearrange(tokens[:, forward.video], "b (f p) d -> (b f) p d", f=forward.grid[0])


def add_to_video(tokens: Float[Tensor, "B L D"], added: Float[Tensor, "BF P D"], forward: Forward
                 ) -> Float[Tensor, "B L D"]:
    """`tokens` with `added` on the video tokens; extra tokens stay."""
    video = tokens[:, forward.video] + rearrange(added, "(b f) p d -> b (f p) d", f=forward.grid[0])
    return video if video.shape == tokens.shape else torch.cat((video, tokens[:, forward.video.stop:]), dim=1)


def linear(layer: nn.Linear, x: Float[Tensor, "*rest I"]) -> Float[Tensor, "*rest O"]:
    """`layer` in the dtype of `x`; its parameters stay as they are."""
    return F.linear(x, layer.weight.to(x), None if layer.bias is None else layer.bias.to(x))
