"""Which of two speakers a token belongs to, found from the base's own attention; as rotary positions (L-RoPE).

Source: MultiTalk (`get_attn_map_with_target`, `SingleStreamMutiAttention`). A token that looks most at the first
speaker's place in the first frame gets a position in 0 … 4, at the second's one in 20 … 24, else 12; their sounds
stand at 2 and 22. Queries and keys are turned by these positions, so that each token hears its own speaker.
"""

from einops import rearrange
from jaxtyping import Bool, Float
import torch
from torch import Tensor

from common.devices import sent

SPANS = ((0.0, 4.0), (20.0, 24.0))
"""Positions of the tokens of each speaker; the sound of each stands in the middle of its span."""
NOBODY = 12.0
BASE = 10000.0
HEADS_AT_ONCE = 4
"""Attention maps are large (tokens times tokens of a frame), so a few heads are taken at a time."""


@torch.no_grad()
def attention_to(query: Float[Tensor, "B L N K"], key: Float[Tensor, "B P N K"], places: Bool[Tensor, "B C P"]
                 ) -> Float[Tensor, "B C L"]:
    """How much each token looks at each place in the first frame: mean over the place's tokens and over the heads."""
    weight = places.float() / places.sum(-1, keepdim=True).clamp(min=1)  # B C P
    total = query.new_zeros(len(query), places.shape[1], query.shape[1], dtype=torch.float32)
    for start in range(0, query.shape[2], HEADS_AT_ONCE):
        heads = slice(start, start + HEADS_AT_ONCE)
        scores = torch.einsum("blnk,bpnk->bnlp", query[:, :, heads], key[:, :, heads]) * query.shape[-1]**-0.5
        total += torch.einsum("bnlp,bcp->bcl", scores.float().softmax(-1), weight)
    return total / query.shape[2]


def label(maps: Float[Tensor, "B 3 L"]) -> Float[Tensor, "B L"]:
    """Position of each token from how much it looks at the first speaker, the second, and neither."""
    least, most = maps.amin(-1, keepdim=True), maps.amax(-1, keepdim=True)
    share = (maps - least) / (most - least + 1e-8)
    positions = [first + share[:, s] * (last - first) for s, (first, last) in enumerate(SPANS)]
    choices = torch.stack((*positions, torch.full_like(share[:, 0], NOBODY)), dim=1)
    return choices.gather(1, maps.argmax(1, keepdim=True))[:, 0]


def turn(x: Float[Tensor, "B L N K"], positions: Float[Tensor, "B L"]) -> Float[Tensor, "B L N K"]:
    """`x` with neighbouring pairs of each head turned by position / 10000^(2 j / K), in the dtype of `x`."""
    width = x.shape[-1]
    rates = BASE ** -(torch.arange(0, width, 2, device=x.device, dtype=torch.float32) / width)
    angle = positions[..., None, None].float() * rates  # B L 1 K/2
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = (even * angle.cos() - odd * angle.sin(), odd * angle.cos() + even * angle.sin())
    return rearrange(torch.stack(turned, dim=-1), "b l n k r -> b l n (k r)").to(x)


def sound_positions(tokens: int, like: Tensor) -> Float[Tensor, "1 C"]:
    """Positions of `tokens` tokens of each speaker's sound, one speaker after the other."""
    middles = sent(torch.tensor([(first + last) / 2 for first, last in SPANS]), like.device)
    return middles.repeat_interleave(tokens)[None]
