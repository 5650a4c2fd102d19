"""Attention kernels by their halves, so that a block that is computed again is spared the first one.

A keeper is a function that stands in the place of `attend` in every self-attention that runs inside `keeping(it)`,
and `again` gives the result of a kernel that has been computed before a backward pass of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from jaxtyping import Float
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend

from wan.modules import attention_ops
from wan.modules.attention import FEW_KEYS, HALF

Keeper = Callable[[Tensor, Tensor, Tensor, str | None], Tensor]
"""(q, k, v, back end) → attention's result, all of them `B L N K`."""
Results = tuple[Tensor, ...]
"""Attention's result, `B L N K` and contiguous, and what the kernel's backward half asks for beside it."""

_KEEPER: ContextVar[Keeper | None] = ContextVar("keeper", default=None)


@contextmanager
def keeping(one: Keeper) -> Iterator[None]:
    """Inside, self-attention is `one`'s. Compiled code does not look: its caller must stop in front of it."""
    token = _KEEPER.set(one)
    try:
        yield
    finally:
        _KEEPER.reset(token)


def keeper() -> Keeper | None:
    """That of the innermost `keeping`; None outside of all, and while torch compiles."""
    return None if torch.compiler.is_compiling() else _KEEPER.get()


class Kernel(NamedTuple):
    """The halves of an attention without mask and dropout."""

    forward: Callable[[Tensor, Tensor, Tensor], Results]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor, Results], tuple[Tensor, Tensor, Tensor]]
    """(gradient, q, k, v, results) → gradients of q, k, v."""


def kernel_of(backend: str | None, q: Float[Tensor, "B L N K"], k: Float[Tensor, "B S N K"]) -> Kernel | None:
    """What the back end runs on these; None where its halves cannot be had."""
    name = backend or "sdpa"
    if name == "fa4" and q.dtype in HALF:
        return FA4 if k.shape[1] >= FEW_KEYS else CUDNN
    if name == "cudnn":
        return CUDNN
    if name != "sdpa" and name != "fa4":
        return None
    chosen = SDPBackend(torch._fused_sdp_choice(q.transpose(1, 2), k.transpose(1, 2), k.transpose(1, 2)))
    if chosen == SDPBackend.FLASH_ATTENTION:
        return FLASH if q.is_cuda else FLASH_ON_CPU
    return CUDNN if chosen == SDPBackend.CUDNN_ATTENTION else None


class _Again(torch.autograd.Function):
    """Attention whose results may be there already."""

    @staticmethod
    def forward(ctx: Any, kernel: Kernel, results: Callable[[Callable[[], Results]], Results], q: Tensor, k: Tensor,
                v: Tensor) -> Tensor:
        found = results(lambda: kernel.forward(q, k, v))
        ctx.kernel = kernel
        ctx.save_for_backward(q, k, v, *found)
        return found[0].view_as(found[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor, Tensor, Tensor]:
        q, k, v, *results = ctx.saved_tensors
        return None, None, *ctx.kernel.backward(gradient, q, k, v, tuple(results))


def again(kernel: Kernel, results: Callable[[Callable[[], Results]], Results], q: Float[Tensor, "B L N K"],
          k: Float[Tensor, "B S N K"], v: Float[Tensor, "B S N K"]) -> Float[Tensor, "B L N K"]:
    """Attention of `q`, `k`, `v` by `kernel`; `results(compute)` gives `compute()`, or what it gave before."""
    found: Tensor = _Again.apply(kernel, results, q, k, v)
    return found


def _fa4(q: Tensor, k: Tensor, v: Tensor) -> Results:
    out, denominators = attention_ops.fa4(q, k, v)
    return out.contiguous(), denominators


def _fa4_backward(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, results: Results
                  ) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = attention_ops.fa4_backward(gradient, q, k, v, *results)
    return found


def _of_torch(forward: Any, backward: Any, arguments: tuple[Any, ...], kept: tuple[int, ...],
              after: Callable[[Tensor, Tensor, Results], tuple[Any, ...]]) -> Kernel:
    """A kernel of torch, `B N L K`.

    `arguments` follow q, k, v in the forward half, whose results `kept` (the output is the first) are kept; `after`
    says, from q, k and these, what follows the output in the backward half.
    """
    def first(q: Tensor, k: Tensor, v: Tensor) -> Results:
        found = forward(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), *arguments)
        return found[0].transpose(1, 2).contiguous(), *(found[place] for place in kept)

    def second(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, results: Results) -> tuple[Tensor, Tensor, Tensor]:
        found = backward(*(one.transpose(1, 2) for one in (gradient, q, k, v, results[0])), *after(q, k, results[1:]))
        dq, dk, dv = (one.transpose(1, 2) for one in found)
        return dq, dk, dv

    return Kernel(first, second)


_aten = torch.ops.aten
FA4 = Kernel(_fa4, _fa4_backward)
CUDNN = _of_torch(_aten._scaled_dot_product_cudnn_attention, _aten._scaled_dot_product_cudnn_attention_backward,
                  (None, True), (1, 6, 7),
                  lambda q, k, kept: (*kept, None, None, None, q.shape[1], k.shape[1], 0.0, False))
FLASH = _of_torch(_aten._scaled_dot_product_flash_attention, _aten._scaled_dot_product_flash_attention_backward,
                  (), (1, 6, 7),
                  lambda q, k, kept: (kept[0], None, None, q.shape[1], k.shape[1], 0.0, False, *kept[1:]))
FLASH_ON_CPU = _of_torch(_aten._scaled_dot_product_flash_attention_for_cpu,
                         _aten._scaled_dot_product_flash_attention_for_cpu_backward,
                         (), (1,), lambda q, k, kept: (*kept, 0.0, False))
