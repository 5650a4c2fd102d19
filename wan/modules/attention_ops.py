"""Attention kernels that torch does not bring, as operators that compile, are kept and computed again like torch's own.

`fa4` is FlashAttention-4 (package flash-attn-4; forward and backward, bfloat16 and float16, exact up to rounding);
`cudnn_fp8` is cuDNN's attention over float8 (package nvidia-cudnn-frontend; forward only). Nothing is imported before
the first call.
"""

import functools
from typing import Any
import warnings

from jaxtyping import Float
import torch
from torch import Tensor

from common.dtypes import DTYPES
from common.operators import NAMESPACE, operator

E4M3 = DTYPES["fp8"]
LARGEST = torch.finfo(E4M3).max
SCALE_OF_WEIGHTS = 256.0
"""What softmax's weights (0…1) are multiplied by before they are rounded to float8."""


@functools.cache
def _flash_attention() -> Any:
    from flash_attn.cute import interface

    # Its compiler tells of an argument of its own that it leaves alone, a screen for each kernel.
    warnings.filterwarnings("ignore", message="Argument aux_data", category=UserWarning)
    return interface


def _fake_fa4(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    samples, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((samples, heads, length), dtype=torch.float32)


@operator("(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)", _fake_fa4)
def fa4(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / sqrt(K)) v and the logarithms of softmax's denominators: `B L N K` and `B N L`, float32."""
    out, denominators, *_ = _flash_attention()._flash_attn_fwd(q, k, v, return_lse=True)
    return out, denominators


def _like_inputs(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor,
                 denominators: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@operator("(Tensor gradient, Tensor q, Tensor k, Tensor v, Tensor out, Tensor denominators) -> "
          "(Tensor, Tensor, Tensor)", _like_inputs)
def fa4_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor,
                 denominators: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    dq, dk, dv = _flash_attention()._flash_attn_bwd(q, k, v, out, gradient, denominators)
    return dq, dk, dv


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = fa4_backward(gradient, *ctx.saved_tensors)
    return gradients


torch.library.register_autograd(f"{NAMESPACE}::fa4", _backward, setup_context=_keep)


def _like_queries(q: Tensor, k: Tensor, v: Tensor, scales: Tensor) -> Tensor:
    return q.new_empty(q.shape)


@operator("(Tensor q, Tensor k, Tensor v, Tensor scales) -> Tensor", _like_queries)
def cudnn_fp8(q: Tensor, k: Tensor, v: Tensor, scales: Tensor) -> Tensor:
    """Attention over float8 (e4m3); the result is float8 with the scale of v. `scales` (3) undo those of q, k, v."""
    graph, names, shape_of_work = _fp8_graph(tuple(q.shape), k.shape[1], q.device.index or 0)
    out = torch.empty(q.shape, dtype=E4M3, device=q.device)
    ends = _fp8_constants(q.device.index or 0)
    given = {"q": q.contiguous(), "k": k.contiguous(), "v": v.contiguous(), "o": out,
             "descale_q": scales[0:1], "descale_k": scales[1:2], "descale_v": scales[2:3],
             "descale_s": ends[0:1], "scale_s": ends[1:2], "scale_o": scales[2:3].reciprocal(),
             "amax_s": ends[2:3], "amax_o": ends[3:4]}
    work = torch.empty(shape_of_work, dtype=torch.uint8, device=q.device)
    import cudnn
    handle = _handle(q.device.index or 0)
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(q.device).cuda_stream)
    graph.execute({names[name]: tensor for name, tensor in given.items()}, work, handle=handle)
    return out


@functools.cache
def _handle(device: int) -> Any:
    import cudnn
    return cudnn.create_handle()


@functools.cache
def _fp8_constants(device: int) -> Tensor:
    """1 / scale and scale of softmax's weights, and two places for maxima that nobody reads."""
    return torch.tensor([1 / SCALE_OF_WEIGHTS, SCALE_OF_WEIGHTS, 0.0, 0.0], device=f"cuda:{device}")


@functools.cache
def _fp8_graph(shape: tuple[int, int, int, int], keys: int, device: int) -> tuple[Any, dict[str, Any], int]:
    """cuDNN's plan for one shape, its tensors by name and the bytes that it works in."""
    import cudnn
    samples, length, heads, width = shape
    kinds = cudnn.data_type
    graph = cudnn.pygraph(io_data_type=kinds.FP8_E4M3, intermediate_data_type=kinds.FLOAT,
                          compute_data_type=kinds.FLOAT, handle=_handle(device))

    def tokens(name: str, count: int) -> Any:
        return graph.tensor(name=name, dim=[samples, heads, count, width],
                            stride=[count * heads * width, width, heads * width, 1], data_type=kinds.FP8_E4M3)

    names = {"q": tokens("q", length), "k": tokens("k", keys), "v": tokens("v", keys)}
    for name in ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o"):
        names[name] = graph.tensor(name=name, dim=[1, 1, 1, 1], stride=[1, 1, 1, 1], data_type=kinds.FLOAT)
    out, _, largest_weight, largest_out = graph.sdpa_fp8(**names, attn_scale=width**-0.5, generate_stats=False,
                                                         name="attention")
    out.set_output(True).set_dim([samples, heads, length, width]).set_stride(
        [length * heads * width, width, heads * width, 1]).set_data_type(kinds.FP8_E4M3)
    for one in (largest_weight, largest_out):
        one.set_output(True).set_dim([1, 1, 1, 1]).set_stride([1, 1, 1, 1]).set_data_type(kinds.FLOAT)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    names.update(o=out, amax_s=largest_weight, amax_o=largest_out)
    return graph, names, max(1, graph.get_workspace_size())


def attend_in_fp8(q: Float[Tensor, "B L N K"], k: Float[Tensor, "B S N K"],
                  v: Float[Tensor, "B S N K"]) -> Float[Tensor, "B L N K"]:
    """Attention whose products are float8, a scale a tensor. Only forward.

    What all keys have in common does not change softmax, and what all values have in common passes through it; both
    are taken off before rounding (the former as SageAttention does, arXiv 2410.02367), so that float8 holds only what
    differs. The result is a mean of values, so it fits where they fit.
    """
    common = v.float().mean(dim=1, keepdim=True)
    parts = (q.float(), k.float() - k.float().mean(dim=1, keepdim=True), v.float() - common)
    scales = torch.stack([part.abs().amax().clamp(min=1e-12) / LARGEST for part in parts])
    rounded = [(part / scale).to(E4M3) for part, scale in zip(parts, scales, strict=True)]
    out: Tensor = cudnn_fp8(*rounded, scales)
    return (out.float() * scales[2] + common).to(q.dtype)
