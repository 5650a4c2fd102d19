"""One transformer block: self-attention, cross-attention to text (and CLIP tokens), feed-forward."""

from dataclasses import dataclass, replace
import functools
import math

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn
import torch.nn.functional as F  # noqa: N812

from wan.modules import modulation as mod
from wan.modules.attention import HALF, attend
from wan.modules.attention_halves import keeper
from wan.modules.hooks import Forward, HookPoints, checked
from wan.modules.modulation import Modulation
from wan.modules.norm import LayerNorm, RMSNorm
from wan.modules.rope import Rope
from wan.variants import Variant

TWO_SQRT_2_BY_PI, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715
"""Of GELU in its tanh form."""


@dataclass(frozen=True)
class PassInputs:
    """What every block of one forward pass shares."""

    text: Float[Tensor, "B S D"]
    image: Float[Tensor, "B T D"] | None
    """Embedded CLIP tokens; None in models without an image branch."""
    rope: Rope
    modulation: Modulation
    forward: Forward
    points: HookPoints
    output_dtype: torch.dtype
    """Dtype of the latents, in which the velocity is returned."""

    @functools.cached_property
    def bare(self) -> "PassInputs":
        """The same without conditions."""
        return replace(self, points=HookPoints())


class TanhGelu(nn.Module):
    """GELU in its tanh form, x/2 (1 + tanh u), which is x · sigmoid(2u): compiled kernels take the quicker second.

    Only in half precision, whose rounding hides the last bits by which the two forms differ in float32.
    """

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        """GELU of every number; compiled in float32, and in the dtype of `x` at the end."""
        if x.dtype not in HALF or not torch.compiler.is_compiling():
            return F.gelu(x, approximate="tanh")
        return gelu_by_sigmoid(x)


def gelu_by_sigmoid(x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
    """The second form of `TanhGelu`. `wan.memory.fp8_fusion` knows its operations one by one."""
    exact = x.float()
    return (exact * torch.sigmoid(TWO_SQRT_2_BY_PI * (exact + CUBIC * exact**3))).to(x.dtype)


class Attention(nn.Module):
    """Projections, query/key norm over the whole width, and the back end; the base of both attentions."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        dim = variant.dim
        self.heads = variant.heads
        self.backend: str | None = None
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q = RMSNorm(dim, variant.eps)
        self.norm_k = RMSNorm(dim, variant.eps)

    def split(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L N K"]:
        """Tokens by heads."""
        return x.unflatten(-1, (self.heads, -1))


class SelfAttention(Attention):
    """Attention among all tokens, with rotary positions; its steps are the block's to take."""

    def project(self, i: int, x: Float[Tensor, "B L D"], inputs: PassInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, `B L N K`."""
        q = self.norm_q.rotated(self.q(x), inputs.rope, self.heads)
        k = self.norm_k.rotated(self.k(x), inputs.rope, self.heads)
        v = self.split(self.v(x))
        for state in inputs.points.self_attention:
            state.self_attention(i, q, k, v, inputs.forward)
        return q, k, v

    def look(self, q: Float[Tensor, "B L N K"], k: Float[Tensor, "B L N K"], v: Float[Tensor, "B L N K"]
             ) -> Float[Tensor, "B L N K"]:
        """The attention itself, by the keeper that is there or by the back end."""
        kept = keeper()
        return attend(q, k, v, backend=self.backend) if kept is None else kept(q, k, v, self.backend)


class CrossAttention(Attention):
    """Attention to the text tokens; with an image branch, also to the CLIP tokens by keys and values of their own."""

    def __init__(self, variant: Variant) -> None:
        super().__init__(variant)
        if variant.has_image_branch:
            self.k_img = nn.Linear(variant.dim, variant.dim)
            self.v_img = nn.Linear(variant.dim, variant.dim)
            self.norm_k_img = RMSNorm(variant.dim, variant.eps)

    def forward(self, i: int, x: Float[Tensor, "B L D"], inputs: PassInputs) -> Float[Tensor, "B L D"]:
        """Attention of block `i`, hooks' terms and output projection included."""
        q = self.split(self.norm_q(self.q(x)))
        k = self.split(self.norm_k(self.k(inputs.text)))
        v = self.split(self.v(inputs.text))
        total = attend(q, k, v, backend=self.backend)  # B L N K
        if inputs.image is not None:
            k = self.split(self.norm_k_img(self.k_img(inputs.image)))
            v = self.split(self.v_img(inputs.image))
            total = total + attend(q, k, v, backend=self.backend)
        for state in inputs.points.cross_attention:
            term = state.cross_attention(i, q, inputs.forward)
            if term is not None:
                total = total + checked(term, q, state, "cross_attention")
        return self.o(rearrange(total, "b l n k -> b l (n k)"))


class WanAttentionBlock(nn.Module):
    """One block. Key names are the official ones (`self_attn.q` … `ffn.2`, `norm3`, `modulation`)."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        dim = variant.dim
        self.eps = variant.eps
        self.self_attn = SelfAttention(variant)
        self.cross_attn = CrossAttention(variant)
        self.norm3 = LayerNorm(dim, eps=variant.eps)
        self.ffn = nn.Sequential(nn.Linear(dim, variant.ffn_dim), TanhGelu(),
                                 nn.Linear(variant.ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, i: int, tokens: Float[Tensor, "B L D"], inputs: PassInputs) -> Float[Tensor, "B L D"]:
        """Tokens after block `i`; the hooks inside a block act here, those around it in `WanDiT.run_block`."""
        tokens = self.attentions(i, tokens, inputs)
        for state in inputs.points.after_cross_attention:
            changed = state.after_cross_attention(i, tokens, inputs.forward)
            tokens = checked(changed, tokens, state, "after_cross_attention")
        return self.feed_forward(tokens, inputs)

    def attentions(self, i: int, tokens: Float[Tensor, "B L D"], inputs: PassInputs) -> Float[Tensor, "B L D"]:
        """Tokens after self-attention and cross-attention."""
        return self.after_self_attention(i, tokens, self.self_attn.look(*self.project(i, tokens, inputs)), inputs)

    def project(self, i: int, tokens: Float[Tensor, "B L D"], inputs: PassInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the self-attention, `B L N K`."""
        x = mod.shift_and_scale(tokens, inputs.modulation, self.modulation,
                                (mod.SHIFT_ATTENTION, mod.SCALE_ATTENTION), self.eps)
        return self.self_attn.project(i, x, inputs)

    def after_self_attention(self, i: int, tokens: Float[Tensor, "B L D"], seen: Float[Tensor, "B L N K"],
                             inputs: PassInputs) -> Float[Tensor, "B L D"]:
        """Tokens after cross-attention, from those before the self-attention and what that one gave."""
        update = self.self_attn.o(seen.flatten(2))
        tokens = mod.add_gated(tokens, update, inputs.modulation, self.modulation, mod.GATE_ATTENTION)
        return tokens + self.cross_attn(i, self.norm3(tokens), inputs)

    def feed_forward(self, tokens: Float[Tensor, "B L D"], inputs: PassInputs) -> Float[Tensor, "B L D"]:
        """Tokens after the feed-forward layers."""
        table, own = inputs.modulation, self.modulation
        x = mod.shift_and_scale(tokens, table, own, (mod.SHIFT_FFN, mod.SCALE_FFN), self.eps)
        return mod.add_gated(tokens, self.ffn(x), table, own, mod.GATE_FFN)
