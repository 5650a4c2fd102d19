"""Products in 8-bit floating point, forward and backward, for frozen weights.

One copy of a weight, in e4m3 with one scale for all of it; rows of activations and of gradients get a scale each as
they come. The input gradient takes the weight transposed on the fly, so nothing is held twice. Accumulation is in the
GPU's units (fast), the result in bfloat16. LoRA is added beside it in bfloat16, as beside any linear layer.
"""

from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor, nn

from wan.memory.fp8 import FP8_DTYPES, Fp8Linear, Fp8Settings, Quantised, dequantise, quantise

E4M3 = FP8_DTYPES[0]
LARGEST = torch.finfo(E4M3).max
SMALLEST_SCALE = 1e-12
MULTIPLE = 16
"""What both sizes of a weight must be a multiple of for the units."""
FEW_ROWS = ("cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img")
"""Linears over text and CLIP tokens: too few rows to gain anything; they store float8 and compute in 16 bits."""


def quantise_rows(x: Float[Tensor, "M K"]) -> tuple[Float[Tensor, "M K"], Float[Tensor, "M 1"]]:
    """(e4m3 values, float32 scales) with a scale for each row."""
    scale = (x.abs().amax(dim=-1, keepdim=True).float() / LARGEST).clamp(min=SMALLEST_SCALE)
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale


def scaled_product(x: Float[Tensor, "M K"], values: Float[Tensor, "K N"], scale: Tensor, dtype: torch.dtype,
                   bias: Tensor | None = None) -> Float[Tensor, "M N"]:
    """x @ (values · scale) with the rows of x quantised; `values` lie column by column (a transposed view)."""
    rows, row_scale = quantise_rows(x)
    columns = scale.reshape(1, 1).expand(1, values.shape[1]).contiguous()
    return torch._scaled_mm(rows, values, scale_a=row_scale, scale_b=columns, bias=bias, out_dtype=dtype,
                            use_fast_accum=True)


class _Product(torch.autograd.Function):
    """x W^T + b, and g W for the input's gradient, both in float8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, scale)
        return scaled_product(x, values.t(), scale, x.dtype, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        values, scale = ctx.saved_tensors
        transposed = values.t().contiguous().t()  # the same numbers, laid out as the units want their second factor
        return scaled_product(gradient, transposed, scale, gradient.dtype), None, None, None


class Fp8ProductLinear(Fp8Linear):
    """A frozen linear layer that multiplies in float8. Its weight has one scale (`store` makes it so)."""

    def store(self, weight: Tensor | Quantised, scale_dtype: torch.dtype | None = None) -> None:
        """Take a weight; one that was quantised by rows or blocks, or in another format, is quantised anew."""
        if isinstance(weight, Quantised) and (weight.scale.numel() > 1 or weight.values.dtype != E4M3):
            weight = dequantise(weight, torch.float32)
        if not isinstance(weight, Quantised):
            weight = quantise(weight.float(), Fp8Settings(mode="tensor"))
        super().store(Quantised(weight.values, weight.scale.float().reshape(())))

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """x W^T + b in the dtype of x, which must be bfloat16 for the GPU's units."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        flat = x.reshape(-1, x.shape[-1])
        return _Product.apply(flat, self.weight, self.scale_weight, bias).reshape(*x.shape[:-1], -1)


def kind_of(name: str, linear: nn.Linear) -> type[Fp8Linear]:
    """What a linear of a block becomes: over few rows, and with sizes that do not suit the units, it only stores."""
    suits = linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0
    return Fp8ProductLinear if suits and not name.endswith(FEW_ROWS) else Fp8Linear
