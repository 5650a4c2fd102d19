"""Weights stored in 8-bit floating point: quantising, and a linear layer that computes from them.

Storage needs no special hardware: the layer turns its weight back into the input's dtype for the moment of the product.
A frozen layer keeps nothing for the backward pass but what it owns, so LoRA training costs no second copy.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
import torch
from torch import Tensor, nn
import torch.nn.functional as F  # noqa: N812

Mode = Literal["tensor", "channel", "block"]
FP8_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
SMALLEST_SCALE = 1e-8


@dataclass(frozen=True)
class Fp8Settings:
    """How the linears of the blocks are stored. The default is musubi-tuner's `--fp8_scaled`."""

    mode: Mode = "block"
    """One scale for the whole weight, for each row, or for each `block` columns of a row."""
    dtype: torch.dtype = torch.float8_e4m3fn
    block: int = 64
    computes: bool = False
    """Whether products are computed in fp8 too (`wan.memory.fp8_compute`), which wants one scale for a weight."""


class Format(NamedTuple):
    """What rows of activations are written in, a scale a row (`wan.memory.fp8_rows`)."""

    dtype: torch.dtype
    largest: float
    """Of the numbers of a row, as it is written."""
    smallest_scale: float


class Quantised(NamedTuple):
    """A weight in fp8 and what it must be multiplied by."""

    values: Tensor
    scale: Tensor
    """One number, `O 1` (or `O`) for a number a row, `O N 1` for a number for each of N equal parts of a row."""


def quantise(weight: Float[Tensor, "..."], settings: Fp8Settings = Fp8Settings()) -> Quantised:
    """fp8 values and float32 scale = max|w| / (largest number of the dtype), at least 1e-8.

    The scale is rounded to the weight's dtype, so that keeping it in that dtype loses nothing. Rows that no whole
    number of blocks fills are scaled by row; a weight that is not a matrix as a whole.
    Source: musubi-tuner `fp8_optimization_utils.py`, bit-exact.
    """
    largest = torch.finfo(settings.dtype).max
    if weight.ndim != 2 or settings.mode == "tensor":
        grouped = weight.reshape(-1)
    elif settings.mode == "channel" or weight.shape[1] % settings.block:
        grouped = weight
    else:
        grouped = weight.reshape(weight.shape[0], -1, settings.block)
    peak = torch.linalg.vector_norm(grouped, ord=float("inf"), dim=-1, keepdim=True)  # max|w| without a copy of |w|
    scale = (peak / largest).float().clamp_(min=SMALLEST_SCALE)
    values = (grouped.float() / scale).clamp_(-largest, largest).to(settings.dtype)
    return Quantised(values.reshape(weight.shape), scale)


def dequantise(quantised: Quantised, dtype: torch.dtype) -> Float[Tensor, "..."]:
    """The weight in `dtype`. The product is formed in the scale's dtype, so a bfloat16 scale gives bfloat16 speed."""
    values, scale = quantised
    work = values.to(scale.dtype)
    if scale.ndim == 3:  # O N 1
        work = (work.reshape(work.shape[0], scale.shape[1], -1) * scale).reshape(values.shape)
    elif scale.numel() > 1 and scale.ndim == 1:  # O
        work = work * scale.reshape(-1, *[1] * (values.ndim - 1))
    else:
        work = work * scale.reshape(()) if scale.numel() == 1 else work * scale
    return work.to(dtype)


class _LinearFromFp8(torch.autograd.Function):
    """x W^T + b with W made again in the backward pass: autograd would otherwise keep every W in 16 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, scale)
        return F.linear(x, dequantise(Quantised(values, scale), x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        of_x = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ dequantise(Quantised(*ctx.saved_tensors), gradient.dtype)
        if ctx.needs_input_grad[3]:
            of_bias = gradient.reshape(-1, gradient.shape[-1]).sum(0)
        return of_x, None, None, of_bias


class Fp8Linear(nn.Linear):
    """A linear layer whose weight is fp8 values and the buffer `scale_weight`. The weight is never trained."""

    weight: nn.Parameter
    scale_weight: Tensor

    def __init__(self, in_features: int, out_features: int, bias: bool = True,
                 settings: Fp8Settings = Fp8Settings()) -> None:
        super().__init__(in_features, out_features, bias, device="meta")
        self.settings = settings
        self.weight = nn.Parameter(self.weight.to(settings.dtype), requires_grad=False)
        self.register_buffer("scale_weight", torch.empty((), device="meta"))

    def store(self, weight: Tensor | Quantised, scale_dtype: torch.dtype | None = None) -> None:
        """Take a weight, or one that is fp8 already (kept as it is, whatever the settings say).

        A weight quantised here is cast to `scale_dtype` before, if that is the finer one; the scale is kept in it.
        None means the weight's own dtype.
        """
        if not isinstance(weight, Quantised):
            scale_dtype = scale_dtype or weight.dtype
            values, scale = quantise(weight.to(torch.promote_types(weight.dtype, scale_dtype)), self.settings)
            weight = Quantised(values, scale.to(scale_dtype))
        self.weight = nn.Parameter(weight.values, requires_grad=False)
        self.scale_weight = weight.scale

    def dequantised_weight(self, dtype: torch.dtype) -> Float[Tensor, "O I"]:
        """The weight in `dtype`, for merging and for inspection."""
        return dequantise(Quantised(self.weight, self.scale_weight), dtype)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """x W^T + b in the dtype of x, or in autocast's where it is on."""
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _LinearFromFp8.apply(x, self.weight, self.scale_weight, bias)

    def _apply(self, fn: Any, recurse: bool = True) -> "Fp8Linear":
        # `.to(torch.bfloat16)` of a whole model may move fp8 values, but must never turn them into 16 bits.
        kept = self.weight.detach()
        super()._apply(fn, recurse)
        if self.weight.dtype != kept.dtype:
            self.weight = nn.Parameter(kept.to(self.weight.device), requires_grad=False)
        return self
