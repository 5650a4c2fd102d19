"""Rows in eight bits, with a scale each: what products in float8 take in, alone and behind a norm or GELU.

A product's input is written in 16 bits and read again only to be scaled. Where a norm or GELU makes it, one kernel does
both, and writes the 16 bits only where something else wants them (a LoRA, the backward pass). `fp8_fusion` puts these
operators into compiled blocks. On a GPU the eight bits come from the kernel's float32 numbers, rounded once; elsewhere
from the 16 bits, as the operations apart have it.
"""

import functools

from jaxtyping import Float
import torch
from torch import Tensor

from common.kernels import reason_against
from common.operators import operator
from wan.memory.fp8 import FP8_DTYPES, Format
from wan.modules.block import gelu_by_sigmoid
from wan.modules.rows import WIDEST, layer_norm_rows

E4M3 = FP8_DTYPES[0]
LARGEST = torch.finfo(E4M3).max
SMALLEST_SCALE = 1e-12
FORMAT = Format(E4M3, LARGEST, SMALLEST_SCALE)


def _fake_rows(x: Tensor, factor: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=E4M3), x.new_empty((x.shape[0], 1), dtype=torch.float32)


@operator("(Tensor x, Tensor? factor=None) -> (Tensor, Tensor)", _fake_rows)
def quantise_rows(x: Float[Tensor, "M K"], factor: Float[Tensor, ""] | None = None
                  ) -> tuple[Float[Tensor, "M K"], Float[Tensor, "M 1"]]:
    """(e4m3 values, float32 scales) with a scale for each row; the scales are given multiplied by `factor`.

    On CUDA one kernel, which reads a row once; what torch compiles for this took two to three times as long as the
    bytes would (profiles on an H200).
    """
    x = x.contiguous()
    if _has_kernels(x):
        from wan.memory.fp8_triton import quantise as by_kernel
        return by_kernel(x, FORMAT, factor)
    scale = (x.abs().amax(dim=-1, keepdim=True).float() / LARGEST).clamp(min=SMALLEST_SCALE)
    values = (x.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3)
    return values, scale if factor is None else scale * factor


def _fake_norm(x: Tensor, weight: Tensor, shift: Tensor | None, eps: float, factor: Tensor | None
               ) -> tuple[Tensor, Tensor]:
    return _fake_rows(x)


@operator("(Tensor x, Tensor weight, Tensor? shift, float eps, Tensor? factor) -> (Tensor, Tensor)", _fake_norm)
def norm_to_eight_bits(x: Tensor, weight: Tensor, shift: Tensor | None, eps: float, factor: Tensor | None
                       ) -> tuple[Tensor, ...]:
    """`quantise_rows` of what `layer_norm_rows` makes of these."""
    return _norm(x, weight, shift, eps, factor, keeps=False)


def _fake_norm_kept(x: Tensor, weight: Tensor, shift: Tensor | None, eps: float, factor: Tensor | None
                    ) -> tuple[Tensor, ...]:
    means, deviations = (x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2))
    return *_fake_rows(x), torch.empty_like(x, memory_format=torch.contiguous_format), means, deviations


@operator("(Tensor x, Tensor weight, Tensor? shift, float eps, Tensor? factor) -> "
          "(Tensor, Tensor, Tensor, Tensor, Tensor)", _fake_norm_kept)
def norm_and_eight_bits(x: Tensor, weight: Tensor, shift: Tensor | None, eps: float, factor: Tensor | None
                        ) -> tuple[Tensor, ...]:
    """`norm_to_eight_bits`, then the three results of `layer_norm_rows`."""
    return _norm(x, weight, shift, eps, factor, keeps=True)


def _norm(x: Tensor, weight: Tensor, shift: Tensor | None, eps: float, factor: Tensor | None, *, keeps: bool
          ) -> tuple[Tensor, ...]:
    x, weight, shift = x.contiguous(), weight.contiguous(), None if shift is None else shift.contiguous()
    if _has_kernels(x):
        from wan.memory.fp8_triton import layer_norm
        return layer_norm(x, weight, shift, eps, FORMAT, factor, keeps=keeps)
    normed = layer_norm_rows(x, weight, shift, eps)
    return *quantise_rows(normed[0], factor), *(normed if keeps else ())


def _fake_gelu(x: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor]:
    return _fake_rows(x)


@operator("(Tensor x, Tensor? factor) -> (Tensor, Tensor)", _fake_gelu)
def gelu_to_eight_bits(x: Tensor, factor: Tensor | None) -> tuple[Tensor, ...]:
    """`quantise_rows` of GELU (its tanh form) of rows."""
    return _gelu(x, factor, keeps=False)


def _fake_gelu_kept(x: Tensor, factor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return *_fake_rows(x), torch.empty_like(x, memory_format=torch.contiguous_format)


@operator("(Tensor x, Tensor? factor) -> (Tensor, Tensor, Tensor)", _fake_gelu_kept)
def gelu_and_eight_bits(x: Tensor, factor: Tensor | None) -> tuple[Tensor, ...]:
    """`gelu_to_eight_bits`, then GELU itself."""
    return _gelu(x, factor, keeps=True)


def _gelu(x: Tensor, factor: Tensor | None, *, keeps: bool) -> tuple[Tensor, ...]:
    x = x.contiguous()
    if _has_kernels(x):
        from wan.memory.fp8_triton import gelu
        return gelu(x, FORMAT, factor, keeps=keeps)
    active = gelu_by_sigmoid(x)
    return *quantise_rows(active, factor), *((active,) if keeps else ())


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda and x.shape[1] <= WIDEST and not why_not(x.device)


@functools.cache
def why_not(device: torch.device) -> str:
    """Why rows cannot be made by the kernels there (a card without float8); an empty text where they can."""
    def attempt() -> str:
        from wan.memory import fp8_triton as kernels

        x = torch.arange(-3.0, 5, device=device).to(torch.bfloat16)[None]
        weight, half = torch.full_like(x, 3).float(), torch.tensor(0.5, device=device)
        normed = layer_norm_rows(x, weight, weight, 1e-6)[0]
        for right, (values, scale) in ((x, kernels.quantise(x, FORMAT, half)),
                                       (normed, kernels.layer_norm(x, weight, weight, 1e-6, FORMAT, half, keeps=False)),
                                       (gelu_by_sigmoid(x), kernels.gelu(x, FORMAT, half, keeps=False))):
            if not torch.allclose(values.float() * scale * 2, right.float(), rtol=0.07, atol=0.02):
                return "they gave other numbers"
        return ""

    return reason_against(attempt, "rows are scaled to eight bits without their own kernels, slower")
