"""Bytes of tensors that are alive, counted as they come and go; and the kernels of a GPU, as far as memory sees them.

Counts real tensors and those of torch's FakeTensorMode, which have shapes and no numbers, alike.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
import weakref

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from wan.modules import rows

BLOCK = 512
"""Bytes in whole multiples of which torch's CUDA allocator gives memory."""


class LiveBytes(TorchDispatchMode):
    """Sums the storages that operations make while it is entered, until they die.

    Views and results in place add nothing. What a kernel takes and gives back inside one operation is not seen.
    Tensors on the meta device have no memory and do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def reset_peak(self) -> None:
        """Begin a new peak at what is alive now."""
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for one in tree_iter(result):
            if isinstance(one, Tensor) and one.device.type != "meta":
                self._add(one.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._known[key] = weakref.ref(storage, partial(self._lost, key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _lost(self, key: int, size: int, _: Any) -> None:
        del self._known[key]
        self.live -= size


class AnswersForFakes(TorchDispatchMode):
    """Answers the questions that tensors without numbers cannot: every number is 1, every comparison true.

    It stands inside a FakeTensorMode. What is known in spite of it (an optimiser's step) keeps its number.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, or answer for it."""
        from torch._subclasses.fake_tensor import DataDependentOutputException

        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            kind = args[0].dtype
            return True if kind == torch.bool else 1.0 if kind.is_floating_point else 1


@contextmanager
def gpu_kernels() -> Iterator[None]:
    """Inside, functions of torch and norms of ours keep what a step on an NVIDIA GPU keeps, where the CPU does not.

    For fake tensors: results are empty. They live on the CPU, because a torch that was built without CUDA cannot
    differentiate fake CUDA tensors. (A TorchFunctionMode would not reach what is recomputed in a backward pass.)
    """
    plain_attention, plain_norm, asked = F.scaled_dot_product_attention, F.rms_norm, rows.lies_on_gpu

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **more: Any) -> Tensor:
        if not _is_fused():
            return plain_attention(query, key, value, attn_mask=attn_mask, **more)
        return _FusedAttention.apply(query, key, value, attn_mask)

    def rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        return _FusedRmsNorm.apply(x, weight)

    F.scaled_dot_product_attention, F.rms_norm = attention, rms_norm  # type: ignore[assignment]
    rows.lies_on_gpu = lambda x: True
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.rms_norm = plain_attention, plain_norm
        rows.lies_on_gpu = asked


def _is_fused() -> bool:
    """Whether another kernel than `math`, which keeps every score, is allowed."""
    cuda = torch.backends.cuda
    return cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled()


class _FusedAttention(torch.autograd.Function):
    """FlashAttention's and cuDNN's kernels: they keep q, k, v, the result and a float32 number a query.

    Their backward adds dq up in float32 (FlashAttention 2 `dq_accum`).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        result = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, result, torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, _, sums = ctx.saved_tensors
        work = [torch.empty_like(q, dtype=torch.float32), torch.empty_like(sums)]
        gradients = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        del work
        return *gradients, None


class _FusedRmsNorm(torch.autograd.Function):
    """torch's CUDA kernel: it keeps its input and one number a row; the CPU keeps every intermediate result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, x.new_empty((*x.shape[:-1], 1)))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight, _ = ctx.saved_tensors
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        return torch.empty_like(x), of_weight


@contextmanager
def counted_fakes(is_gpu: bool) -> Iterator[LiveBytes]:
    """Inside, tensors are made without numbers and counted; `is_gpu` puts in the kernels of a GPU."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        if is_gpu:
            stack.enter_context(gpu_kernels())
        stack.enter_context(FakeTensorMode())
        stack.enter_context(AnswersForFakes())
        yield stack.enter_context(LiveBytes())


def fake_like(value: Tensor) -> Tensor:
    """An empty tensor of `value`'s shape and dtype, to be called inside `counted_fakes`."""
    return torch.empty(value.shape, dtype=value.dtype)
