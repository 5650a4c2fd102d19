"""DoRA, LoHa and LoKr beside a linear layer, with the parameters and initial weights of LyCORIS.

The library itself (lycoris-lora 4.1.3) is not used. On a quantised base its DoRA runs without the lengths and says
nothing of it; elsewhere it makes the whole changed weight in the base's dtype, where small changes are rounded away,
and autograd keeps it for every layer; its LoHa and LoKr merge with (alpha / rank)² where they trained with alpha /
rank; and it needs the `toml` package. Here every base is reached through its own forward, so all kinds work on float8
too, and nothing of the weight's size is kept for the backward pass.
Sources: arXiv 2402.09353 (DoRA), 2108.06098 (LoHa), 2212.10650 and LyCORIS `modules/lokr.py` (LoKr).
"""

from collections.abc import Sequence
import math
from typing import Any, Self

from jaxtyping import Float
import torch
from torch import Tensor, nn
import torch.nn.functional as F  # noqa: N812

from common.errors import NetworkFileError
from networks.deltas import SMALLEST_NORM
from networks.entry import LOHA, LOKR, Entry
from networks.layer import Dropouts, Layer, LoraLayer, Switch


class DoraLayer(LoraLayer):
    """LoRA that learns direction and length of the weight's rows apart: y = g ∘ (W + D) x + b, g = m / ‖W + D‖.

    The lengths m are saved as `dora_scale` `O 1` and start as those of W. ‖W + D‖² = ‖W‖² + 2 W·D + ‖D‖² needs W only
    as the base's own product with `down`, so W is neither copied nor dequantised. Gradients pass through the norm, as
    in LyCORIS (the paper offers to cut them there). Dropouts act on D x alone.
    """

    kind = "DoRA"
    parts = {**LoraLayer.parts, "dora_scale": "dora_scale"}

    squares: Tensor

    def __init__(self, base: nn.Linear, switch: Switch, *, rank: int, alpha: float,
                 dropouts: Dropouts = Dropouts()) -> None:  # noqa: B008
        super().__init__(base, switch, rank=rank, alpha=alpha, dropouts=dropouts)
        self.register_buffer("squares", row_squares(base), persistent=False)
        self.dora_scale = nn.Parameter(self.squares.sqrt().clamp(min=SMALLEST_NORM)[:, None])

    def reset(self, source: torch.Generator) -> None:
        """LoRA's initial weights, and the lengths of the base's rows."""
        super().reset(source)
        with torch.no_grad():
            self.dora_scale.copy_(self.squares.sqrt().clamp(min=SMALLEST_NORM)[:, None])

    def attach(self) -> None:
        """As any layer; NetworkFileError where another one acts already, whose part the lengths would turn too."""
        if self._plain_forward is None and "forward" in vars(self._base[0]):
            raise NetworkFileError("DoRA is to be the first network beside a base, because it turns what the base "
                                   "gives. Name its file first, or merge the files.")
        super().attach()

    def gain(self, dtype: torch.dtype) -> Float[Tensor, "O"]:
        """m / ‖W + D‖ of each row, float32; W @ down is computed in `dtype`, as the base computes."""
        up, down = self.lora_up.weight, self.lora_down.weight
        base = self._base[0]
        # The class's own forward: what else is attached to this base is no part of W.
        product = type(base).forward(base, down.to(dtype))  # r O
        if base.bias is not None:
            product = product - base.bias.to(product.dtype)
        crossed = (product.float().T * up).sum(1)
        own = ((up @ (down @ down.T)) * up).sum(1)
        squared = self.squares + 2 * self.scale * crossed + self.scale**2 * own
        return self.dora_scale[:, 0] / squared.clamp(min=SMALLEST_NORM**2).sqrt()

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The base's result, turned. A base that adds a low-rank product as it multiplies would leave the lengths out.
        """
        return Layer.forward(self, x)

    def added(self, x: Float[Tensor, "*B I"], base: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """`base` with ((g - 1) W + g D) x added at the network's strength."""
        low, scale = self.low(x)
        gain = self.gain(x.dtype)
        bias = self._base[0].bias
        plain = base if bias is None else base - bias.to(base.dtype)
        turned = F.linear(low, (self.lora_up.weight * (gain * (scale * self.switch.multiplier))[:, None]).to(x.dtype))
        return base + plain * ((gain - 1) * self.switch.multiplier).to(base.dtype) + turned.to(base.dtype)


def row_squares(base: nn.Linear) -> Float[Tensor, "O"]:
    """‖W‖² of each row in float32; of what a quantised layer (which has `dequantised_weight`) stands for."""
    weight = base.dequantised_weight(torch.float32) if hasattr(base, "dequantised_weight") else base.weight
    norms: Tensor = torch.linalg.vector_norm(weight.detach(), dim=1, dtype=torch.float32)
    return norms.square()


class LohaLayer(Layer):
    """Elementwise product of two low-rank products: rank r² from parameters of rank 2r. Keys `hada_w1_a` `O r` …

    The weight's change is made only where that is less work than a product of rank r².
    """

    kind = "LoHa"
    parts = {part: part for part in LOHA}
    zero_at_first = ("hada_w2_a",)
    multiplied = LOHA

    def __init__(self, base: nn.Linear, switch: Switch, *, rank: int, alpha: float,
                 dropouts: Dropouts = Dropouts()) -> None:  # noqa: B008
        super().__init__(base, switch, rank=rank, alpha=alpha, dropouts=dropouts)
        for half in ("hada_w1", "hada_w2"):
            self.register_parameter(f"{half}_a", nn.Parameter(torch.zeros(base.out_features, rank)))
            self.register_parameter(f"{half}_b", nn.Parameter(torch.zeros(rank, base.in_features)))

    def reset(self, source: torch.Generator) -> None:
        """Normal with deviation 0.1 (w1_a) and 1 (w1_b, w2_b); w2_a zero, as in LyCORIS and musubi-tuner."""
        w1_a, w1_b, w2_a, w2_b = self.factors()
        nn.init.normal_(w1_a, std=0.1, generator=source)
        nn.init.normal_(w1_b, std=1.0, generator=source)
        nn.init.normal_(w2_b, std=1.0, generator=source)
        nn.init.zeros_(w2_a)

    def factors(self) -> list[nn.Parameter]:
        """w1_a, w1_b, w2_a, w2_b."""
        return [self.get_parameter(name) for name in LOHA]

    def added(self, x: Float[Tensor, "*B I"], base: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """`base` with the product added."""
        scale = self.scale * self.switch.multiplier
        w1_a, w1_b, w2_a, w2_b = self.factors()
        outputs, inputs = w1_a.shape[0], w1_b.shape[1]
        if self.rank**2 * (outputs + inputs) < outputs * inputs:
            # (A B) ∘ (C D) = P Q with P[o, ij] = A[o, i] C[o, j], Q[ij, n] = B[i, n] D[j, n]: a LoRA of rank r².
            down = torch.einsum("in,jn->ijn", w1_b, w2_b).flatten(0, 1)
            up = torch.einsum("oi,oj->oij", w1_a, w2_a).flatten(1) * scale
            return base + F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype)).to(base.dtype)
        return base + _HadamardLinear.apply(x, w1_a, w1_b, w2_a, w2_b, scale).to(base.dtype)

    def norm(self) -> Tensor:
        """Norm of the product, which is made for it."""
        w1_a, w1_b, w2_a, w2_b = self.factors()
        return torch.linalg.matrix_norm((w1_a @ w1_b) * (w2_a @ w2_b)) * self.scale


class _HadamardLinear(torch.autograd.Function):
    """x (s · (A B) ∘ (C D))^T, the weight made again in the backward pass: autograd would keep three of its size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, a, b, c, d)
        ctx.scale = scale
        return F.linear(x, ((a @ b) * (c @ d) * scale).to(x.dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, a, b, c, d = ctx.saved_tensors
        first, second = a @ b, c @ d
        of_x = gradient @ (first * second * ctx.scale).to(gradient.dtype) if ctx.needs_input_grad[0] else None
        rows = gradient.reshape(-1, gradient.shape[-1]).T @ x.reshape(-1, x.shape[-1])  # O I
        of_product = rows.to(a.dtype) * ctx.scale
        of_first, of_second = of_product * second, of_product * first
        return of_x, of_first @ b.T, a.T @ of_first, of_second @ d.T, c.T @ of_second, None


class LokrLayer(Layer):
    """Kronecker product of a small and a large matrix: W changes by s · kron(w1 `A C`, w2 `K N`), O = A K, I = C N.

    Each half is whole (`lokr_w1`) or a pair (`lokr_w1_a`, `lokr_w1_b`). The product is never made:
    y[a, k] = Σ w1[a, c] w2[k, n] x[c, n].
    """

    kind = "LoKr"
    parts = {part: part for part in LOKR}
    zero_at_first = ("lokr_w2", "lokr_w2_b")
    multiplied = LOKR

    def __init__(self, base: nn.Linear, switch: Switch, *, rank: int, alpha: float,
                 shapes: dict[str, tuple[int, int]], dropouts: Dropouts = Dropouts()) -> None:  # noqa: B008
        """`shapes` of the halves, under the keys of the file (`lokr_shapes`)."""
        super().__init__(base, switch, rank=rank, alpha=alpha, dropouts=dropouts)
        if "lokr_w1" in shapes and "lokr_w2" in shapes:
            self.scale = 1.0
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    @classmethod
    def like(cls, base: nn.Linear, switch: Switch, entry: Entry, dropouts: Dropouts = Dropouts()  # noqa: B008
             ) -> Self:
        """Halves whole or paired as in the file."""
        shapes = {name: (int(tensor.shape[0]), int(tensor.shape[1])) for name, tensor in entry.parts.items()
                  if name in LOKR}
        alpha = entry.scale * entry.rank if entry.rank else float(entry.parts.get("alpha", torch.ones(())))
        return cls(base, switch, rank=entry.rank, alpha=alpha, shapes=shapes, dropouts=dropouts)

    def reset(self, source: torch.Generator) -> None:
        """Kaiming (a = sqrt 5) but for w2, or the b of its pair, which is zero."""
        for name, parameter in self.named_parameters():
            if name in self.zero_at_first:
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=source)

    def added(self, x: Float[Tensor, "*B I"], base: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """`base` with the product added."""
        columns = self._half("lokr_w1")[-1].shape[1]
        y = x.unflatten(-1, (columns, -1))  # *B C N
        for matrix in reversed(self._half("lokr_w2")):
            y = F.linear(y, matrix.to(x.dtype))  # *B C K
        y = y.transpose(-1, -2)
        for matrix in reversed(self._half("lokr_w1")):
            y = F.linear(y, matrix.to(x.dtype))  # *B K A
        y = y.transpose(-1, -2).flatten(-2)  # *B O
        return base + (y * (self.scale * self.switch.multiplier)).to(base.dtype)

    def _half(self, name: str) -> Sequence[nn.Parameter]:
        """The matrices whose product the half is."""
        own = dict(self.named_parameters())
        return [own[name]] if name in own else [own[f"{name}_a"], own[f"{name}_b"]]

    def norm(self) -> Tensor:
        """The norm of a Kronecker product is that of its halves multiplied."""
        first, second = (half[0] if len(half) == 1 else half[0] @ half[1]
                         for half in (self._half("lokr_w1"), self._half("lokr_w2")))
        return torch.linalg.matrix_norm(first) * torch.linalg.matrix_norm(second) * self.scale


def lokr_shapes(base: nn.Linear, rank: int, *, factor: int = -1, decompose_both: bool = False,
                full_matrix: bool = False) -> dict[str, tuple[int, int]]:
    """Shapes of a LoKr's halves as LyCORIS chooses them: a half is whole where a pair of `rank` would save nothing."""
    (rows, more_rows), (columns, more_columns) = (split_size(size, factor) for size in (
        base.out_features, base.in_features))

    def half(name: str, height: int, width: int, may_be_a_pair: bool) -> dict[str, tuple[int, int]]:
        if may_be_a_pair and not full_matrix and rank < max(height, width) / 2:
            return {f"{name}_a": (height, rank), f"{name}_b": (rank, width)}
        return {name: (height, width)}

    return {**half("lokr_w1", rows, columns, decompose_both), **half("lokr_w2", more_rows, more_columns, True)}


def split_size(size: int, factor: int = -1) -> tuple[int, int]:
    """(small, large) with small * large = size, as LyCORIS's `factorization`: 128 → (8, 16), by factor 4 → (4, 32).

    `factor` itself where it divides the size, else the largest divisor that is neither above it nor above the root.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    limit = min(math.isqrt(size), factor if factor > 0 else size)
    small = next(number for number in range(limit, 0, -1) if size % number == 0)
    return small, size // small
