"""Products in 8-bit floating point, forward and backward, for frozen weights.

One copy of a weight, in e4m3 with one scale for all of it; rows of activations and of gradients get a scale each as
they come. The input gradient takes the weight transposed on the fly, so nothing is held twice. Accumulation is in the
GPU's units (fast), the result in bfloat16. LoRA is added beside it in bfloat16, as beside any linear layer.
"""

from collections.abc import Sequence
import functools
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor, nn

from common.low_rank import add_low_rank_in_place, low_rank_gradients
from common.operators import operator
from wan.memory.fp8 import Fp8Linear, Fp8Settings, Quantised, dequantise, quantise
from wan.memory.fp8_rows import E4M3, quantise_rows

MULTIPLE = 16
"""What both sizes of a weight must be a multiple of for the units."""
FEW_ROWS = ("cross_attn.k", "cross_attn.v", "cross_attn.k_img", "cross_attn.v_img")
"""Linears over text and CLIP tokens: too few rows to gain anything; they store float8 and compute in 16 bits."""


def _fake_product(rows: Tensor, row_scale: Tensor, values: Tensor, bias: Tensor | None, low_rank: list[Tensor],
                  strength: float, dtype: torch.dtype) -> Tensor:
    return rows.new_empty((rows.shape[0], values.shape[0]), dtype=dtype)


@operator("(Tensor rows, Tensor row_scale, Tensor values, Tensor? bias, Tensor[] low_rank, float strength, "
          "ScalarType dtype) -> Tensor", _fake_product)
def fp8_product(rows: Tensor, row_scale: Tensor, values: Tensor, bias: Tensor | None, low_rank: list[Tensor],
                strength: float, dtype: torch.dtype) -> Tensor:
    """(rows · row_scale) valuesᵀ + bias + strength · low upᵀ: `M K`, `M 1`, `N K`, `N`, `M r`, `N r` to `M N`.

    The low-rank part is added where the product lies: no second tensor of its size is written or read.
    """
    result = torch._scaled_mm(rows.contiguous(), values.t(), scale_a=row_scale.contiguous(),
                              scale_b=_ones(values.shape[0], rows.device), bias=bias, out_dtype=dtype,
                              use_fast_accum=True)
    if low_rank:
        low, up = low_rank
        add_low_rank_in_place(result, low, up, strength)
    return result


@functools.cache
def _ones(count: int, device: torch.device) -> Float[Tensor, "1 N"]:
    """The units want a scale a column beside one a row; the weight's one number is in the rows'."""
    return torch.ones(1, count, device=device)


def prepare_products(model: nn.Module) -> None:
    """Make what all products share, before CUDA graphs are recorded: those must own all memory that is new in them."""
    for module in model.modules():
        if isinstance(module, Fp8ProductLinear) and module.weight.is_cuda:
            for count in module.weight.shape:
                _ones(count, module.weight.device)


def scaled_product(x: Float[Tensor, "M K"], values: Float[Tensor, "N K"], scale: Tensor, bias: Tensor | None = None,
                   low_rank: Sequence[Tensor] = (), strength: float = 1.0) -> Float[Tensor, "M N"]:
    """x (values · scale)ᵀ + bias in the dtype of x, whose rows are quantised; `low_rank`: nothing, or (low, up)."""
    rows, row_scale = quantise_rows(x)
    result: Tensor = fp8_product(rows, row_scale * scale, values, bias, list(low_rank), strength, x.dtype)
    return result


class _Product(torch.autograd.Function):
    """x Wᵀ + b, with a low-rank part or without, and g W for the input's gradient, both in float8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None, low: Tensor | None,
                up: Tensor | None, strength: float) -> Tensor:
        ctx.save_for_backward(values, scale, low, up)
        ctx.strength = strength
        return scaled_product(x, values, scale, bias, () if low is None or up is None else (low, up), strength)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, low, up = ctx.saved_tensors
        of_x = of_low = of_up = None
        if ctx.needs_input_grad[0]:
            # The same numbers, laid out as the units want their second factor.
            of_x = scaled_product(gradient, values.t().contiguous(), scale)
        if low is not None:
            of_low, of_up = low_rank_gradients(gradient, low, up, ctx.strength)
        return of_x, None, None, None, of_low, of_up, None


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
        """x Wᵀ + b in the dtype of x, which must be bfloat16 for the GPU's units."""
        return self.forward_with(x, None, None, 1.0)

    def forward_with(self, x: Float[Tensor, "*B I"], low: Float[Tensor, "*B r"] | None, up: Float[Tensor, "O r"] | None,
                     strength: float) -> Float[Tensor, "*B O"]:
        """x Wᵀ + b + strength · low upᵀ, the low-rank part in the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        low = None if low is None else low.reshape(-1, low.shape[-1])
        flat = x.reshape(-1, x.shape[-1])
        product = _Product.apply(flat, self.weight, self.scale_weight, bias, low, up, strength)
        return product.reshape(*x.shape[:-1], -1)  # type: ignore[no-any-return]


def kind_of(name: str, linear: nn.Linear) -> type[Fp8Linear]:
    """What a linear of a block becomes: over few rows, and with sizes that do not suit the units, it only stores."""
    suits = linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0
    return Fp8ProductLinear if suits and not name.endswith(FEW_ROWS) else Fp8Linear
