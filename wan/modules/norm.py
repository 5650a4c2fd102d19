"""Norms of the DiT: statistics in float32 whatever the tokens' dtype."""

from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wan.modules.rope import Rope, rotate
from wan.modules.rows import goes_by_rows, layer_norm_rows, rms_norm_rows


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last axis (the whole width, not the head's)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        """Normalised `x` in the dtype of `x`."""
        if goes_by_rows(x, self.weight):
            return rms_norm_rows(x.flatten(0, -2), self.weight, self.eps, None, None)[0].view_as(x)
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)

    def rotated(self, x: Float[Tensor, "B L D"], rope: Rope, heads: int) -> Float[Tensor, "B L N K"]:
        """Normalised `x` by heads, every token turned to its position."""
        if goes_by_rows(x, self.weight):
            # The operator would take any table whose length divides the rows, and its kernel any at all.
            assert rope.cos.shape == (x.shape[1], 1, x.shape[2] // heads), "positions of other tokens than these"
            return rms_norm_rows(x.flatten(0, 1), self.weight, self.eps, *rope)[0].view(*x.shape[:2], heads, -1)
        return rotate(self(x).unflatten(-1, (heads, -1)), rope)


class LayerNorm(nn.LayerNorm):
    """Layer norm with weight and bias over the last axis."""

    def forward(self, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
        """Normalised `x` in the dtype of `x`."""
        if goes_by_rows(x, self.weight, self.bias):
            weight, bias = self.weight.float()[None], self.bias.float()[None]
            return layer_norm_rows(x.flatten(0, -2), weight, bias, self.eps)[0].view_as(x)
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(),
                            self.eps).to(x.dtype)
