"""What goes into the DiT beside the latents: time, text and CLIP embeddings."""

from collections.abc import Sequence

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConditionError
from wan.modules.norm import LayerNorm


class Float32Linear(nn.Linear):
    """A linear computed in float32 whatever its weights are stored in (time embedding, head)."""

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest E"]:
        """float32 result."""
        return F.linear(x.float(), self.weight.float(), self.bias.float())


def timestep_sinusoid(timestep: Float[Tensor, "*rest"], width: int) -> Float[Tensor, "*rest {width}"]:
    """`width`/2 cosines, then as many sines, of t·10000^(-k/(width/2)); t in 0…1000; computed in float64.

    A float32 sinusoid moves the velocity by 1e-4 (measured against diffusers).
    """
    half = width // 2
    frequencies = torch.pow(10_000.0, -torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angles = timestep.double()[..., None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).float()


def pad_text(text: Sequence[Float[Tensor, "_ D"]], length: int) -> Float[Tensor, "B {length} D"]:
    """Stack encoded prompts, zeros after each (Wan's models see the zeros; there is no mask)."""
    longest = max(len(one) for one in text)
    if longest > length:
        raise ConditionError(f"a prompt has {longest} tokens; the model takes {length}. Cut it when encoding.")
    return torch.stack([F.pad(one, (0, 0, 0, length - len(one))) for one in text])


class ImageEmbedding(nn.Module):
    """CLIP features → tokens for the cross-attention; with `positions`, of a first and a last picture."""

    def __init__(self, image_dim: int, dim: int, *, positions: int | None = None) -> None:
        super().__init__()
        self.proj = nn.Sequential(LayerNorm(image_dim), nn.Linear(image_dim, image_dim), nn.GELU(),
                                  nn.Linear(image_dim, dim), LayerNorm(dim))
        self.emb_pos = nn.Parameter(torch.zeros(1, positions, image_dim)) if positions else None

    def forward(self, features: Float[Tensor, "B T Dc"]) -> Float[Tensor, "B T D"]:
        """Embedded features; where there are positions T must be their number."""
        if self.emb_pos is not None:
            features = features + self.emb_pos
        return self.proj(features)


def unpatchify(patches: Float[Tensor, "B L P"], grid: tuple[int, int, int], patch: tuple[int, int, int]
               ) -> Float[Tensor, "B C F H W"]:
    """Tokens of patch values (channel fastest) → latents."""
    f, h, w = grid
    p, q, r = patch
    return rearrange(patches, "b (f h w) (p q r c) -> b c (f p) (h q) (w r)", f=f, h=h, w=w, p=p, q=q, r=r)
