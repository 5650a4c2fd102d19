"""Norms of tokens, one kernel a pass: modulated layer norm, and RMS norm with the rotation of queries and keys.

Compiled by torch, a norm over the whole width reads its row several times and takes three to eight times as long as
its bytes would (profiles of 14B blocks on an H200). Here a program holds a token's numbers: they are read once and
written once, statistics and all sums in float32, one rounding at the end. On CUDA in half precision; elsewhere, and
where weights of the norm are trained, operation by operation as written in `norm.py` and `modulation.py`.
"""

import functools
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor

from common.kernels import reason_against
from common.operators import NAMESPACE, operator
from wan.modules.attention import HALF

NARROWEST, WIDEST = 512, 16384
"""Widths for which a program a row is the right size."""


def lies_on_gpu(x: Tensor) -> bool:
    """Whether `x` is a GPU's; what counts a GPU's memory without one puts its own answer in this place."""
    return x.is_cuda


def goes_by_rows(x: Tensor, *weights: Tensor | None) -> bool:
    """Whether a norm of `x` with these weights is computed by the operators of this file."""
    return (lies_on_gpu(x) and x.dtype in HALF and NARROWEST <= x.shape[-1] <= WIDEST
            and not any(weight is not None and weight.requires_grad for weight in weights))


def _statistics(x: Tensor, count: int) -> list[Tensor]:
    return [x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(count)]


def _fake_rows(x: Tensor) -> Tensor:
    """What an operator makes of `x`: laid out row after row, however `x` lies."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_layer_norm(x: Tensor, weight: Tensor, shift: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    means, scales = _statistics(x, 2)
    return _fake_rows(x), means, scales


@operator("(Tensor x, Tensor weight, Tensor? shift, float eps) -> (Tensor, Tensor, Tensor)", _fake_layer_norm)
def layer_norm_rows(x: Tensor, weight: Tensor, shift: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Layer norm of rows: normed(x)·weight + shift, and the rows' means and inverse deviations.

    `x` is ``M D``; `weight` and `shift` are float32 ``T D``, each row of which serves M/T rows of `x` in turn.
    """
    x, weight, shift = x.contiguous(), weight.contiguous(), None if shift is None else shift.contiguous()
    if _has_kernels(x):
        from wan.modules.rows_triton import layer_norm
        return layer_norm(x, weight, shift, eps)
    exact = x.float()
    means = exact.mean(dim=1)
    scales = (exact.var(dim=1, correction=0) + eps).rsqrt()
    value = (exact - means[:, None]) * scales[:, None] * _spread(weight, len(x))
    return (value if shift is None else value + _spread(shift, len(x))).to(x.dtype), means, scales


@operator("(Tensor gradient, Tensor x, Tensor weight, Tensor means, Tensor scales) -> Tensor",
          lambda gradient, x, weight, means, scales: _fake_rows(x))
def layer_norm_rows_backward(gradient: Tensor, x: Tensor, weight: Tensor, means: Tensor, scales: Tensor) -> Tensor:
    """Gradient of `x` in `layer_norm_rows`."""
    gradient, x, weight = gradient.contiguous(), x.contiguous(), weight.contiguous()
    if _has_kernels(x):
        from wan.modules.rows_triton import layer_norm_backward
        return layer_norm_backward(gradient, x, weight, means, scales)
    normed = (x.float() - means[:, None]) * scales[:, None]
    slope = gradient.float() * _spread(weight, len(x))
    along = (slope * normed).mean(dim=1, keepdim=True)
    return ((slope - slope.mean(dim=1, keepdim=True) - normed * along) * scales[:, None]).to(x.dtype)


def _fake_rms_norm(x: Tensor, weight: Tensor, eps: float, cos: Tensor | None, sin: Tensor | None
                   ) -> tuple[Tensor, Tensor]:
    return _fake_rows(x), *_statistics(x, 1)


@operator("(Tensor x, Tensor weight, float eps, Tensor? cos, Tensor? sin) -> (Tensor, Tensor)", _fake_rms_norm)
def rms_norm_rows(x: Tensor, weight: Tensor, eps: float, cos: Tensor | None, sin: Tensor | None
                  ) -> tuple[Tensor, Tensor]:
    """RMS norm of rows, their pairs of channels turned where tables are given, and the rows' inverse lengths.

    `x` is ``M D``, `weight` `` D``; `cos` and `sin` are ``L 1 K`` as in `rope.Rope`, for rows whose heads are K wide
    and of which L make a sample. The normed numbers are not rounded before they are turned.
    """
    x, cos, sin = x.contiguous(), None if cos is None else cos.contiguous(), None if sin is None else sin.contiguous()
    if _has_kernels(x):
        from wan.modules.rows_triton import rms_norm
        return rms_norm(x, weight.contiguous(), eps, cos, sin)
    exact = x.float()
    scales = (exact.square().mean(dim=1) + eps).rsqrt()
    value = exact * scales[:, None] * weight.float()
    return _turned(value, cos, sin).to(x.dtype), scales


@operator("(Tensor gradient, Tensor x, Tensor weight, Tensor scales, Tensor? cos, Tensor? sin) -> Tensor",
          lambda gradient, x, weight, scales, cos, sin: _fake_rows(x))
def rms_norm_rows_backward(gradient: Tensor, x: Tensor, weight: Tensor, scales: Tensor, cos: Tensor | None,
                           sin: Tensor | None) -> Tensor:
    """Gradient of `x` in `rms_norm_rows`."""
    gradient, x = gradient.contiguous(), x.contiguous()
    cos, sin = None if cos is None else cos.contiguous(), None if sin is None else sin.contiguous()
    if _has_kernels(x):
        from wan.modules.rows_triton import rms_norm_backward
        return rms_norm_backward(gradient, x, weight.contiguous(), scales, cos, sin)
    normed = x.float() * scales[:, None]
    slope = _turned(gradient.float(), cos, None if sin is None else -sin) * weight.float()
    return ((slope - normed * (slope * normed).mean(dim=1, keepdim=True)) * scales[:, None]).to(x.dtype)


def _spread(table: Float[Tensor, "T D"], rows: int) -> Float[Tensor, "M D"]:
    return table if len(table) == 1 else table.repeat_interleave(rows // len(table), dim=0)


def _turned(x: Float[Tensor, "M D"], cos: Tensor | None, sin: Tensor | None) -> Float[Tensor, "M D"]:
    if cos is None or sin is None:
        return x
    pairs = x.unflatten(0, (-1, len(cos))).unflatten(-1, (-1, cos.shape[-1]))  # B L N K
    other = pairs.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (pairs * cos + other * sin).flatten(-2).flatten(0, 1)


def _keep_layer_norm(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, float], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(inputs[0], inputs[1], *output[1:])


def _layer_norm_slopes(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor, None, None, None]:
    return layer_norm_rows_backward(gradient, *ctx.saved_tensors), None, None, None


def _keep_rms_norm(ctx: Any, inputs: tuple[Tensor, Tensor, float, Tensor | None, Tensor | None],
                   output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, cos, sin = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, output[1], cos, sin)


def _rms_norm_slopes(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, None, None, None, None]:
    return rms_norm_rows_backward(gradient, *ctx.saved_tensors), None, None, None, None


torch.library.register_autograd(f"{NAMESPACE}::layer_norm_rows", _layer_norm_slopes, setup_context=_keep_layer_norm)
torch.library.register_autograd(f"{NAMESPACE}::rms_norm_rows", _rms_norm_slopes, setup_context=_keep_rms_norm)


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda and not why_not(x.device)


@functools.cache
def why_not(device: torch.device) -> str:
    """Why the kernels cannot be had there; an empty text where they can."""
    def attempt() -> str:
        from wan.modules import rows_triton as kernels

        x = torch.arange(3 * 40.0, device=device).sin().reshape(3, 40).to(torch.bfloat16)
        weight, table = x[:1].float() + 1, x[:, None, :8].float().contiguous()
        normed, means, scales = kernels.layer_norm(x, weight, weight, 1e-6)
        found = [normed, kernels.layer_norm_backward(x, x, weight, means, scales)]
        turned, lengths = kernels.rms_norm(x, weight[0], 1e-6, table, table)
        found += [turned, kernels.rms_norm_backward(x, x, weight[0], lengths, table, table)]
        return "" if all(one.isfinite().all().item() for one in found) else "they gave numbers that are not finite"

    return reason_against(attempt, "norms are computed without their own kernels, slower")
