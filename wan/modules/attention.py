"""`attend()`: the one place that calls an attention kernel, through named back ends."""

from collections.abc import Callable
from importlib.util import find_spec

from jaxtyping import Float, Int
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.errors import ConfigError, nearest

Backend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attend(q: Float[Tensor, "B L N K"], k: Float[Tensor, "B S N K"], v: Float[Tensor, "B S N K"],
           lengths: Int[Tensor, " B"] | None = None, backend: str | None = None) -> Float[Tensor, "B L N K"]:
    """softmax(q kᵀ / sqrt(K)) v.

    `lengths` counts the valid keys of each sample, the rest is not seen; None = all (and no mask, which keeps the
    fastest kernels). `backend` is a key of `BACKENDS`; None = ``sdpa``. ConfigError for one that is not installed.
    """
    name = backend or "sdpa"
    if name not in BACKENDS:
        check_backend(name)
    return BACKENDS[name](q, k, v, lengths)


def check_backend(name: str) -> None:
    """Refuse an unknown back end, or one whose package is missing; the ConfigError says what to install."""
    if name not in BACKENDS:
        raise ConfigError(f"attention back end '{name}' is unknown{nearest(name, BACKENDS)}. "
                          f"Use one of {', '.join(BACKENDS)}.")
    if name == "flash_attn" and find_spec("flash_attn") is None:
        raise ConfigError("attention back end 'flash_attn' needs the package flash-attn, which is not installed. "
                          "Install it (pip install flash-attn; NVIDIA GPUs only) or use sdpa, which is as fast or "
                          "faster on recent GPUs.")
    if name == "cudnn" and not torch.cuda.is_available():
        raise ConfigError("attention back end 'cudnn' needs an NVIDIA GPU, and none was found. Use sdpa.")


def _sdpa(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    """torch's own choice among its kernels."""
    mask = None
    if lengths is not None:
        mask = (torch.arange(k.shape[1], device=k.device) < lengths[:, None])[:, None, None]  # B 1 1 S
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # B N L K
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _forced(kernel: SDPBackend) -> Backend:
    """torch's attention with one kernel and no other; torch raises where it cannot serve the call."""
    def run(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        with sdpa_kernel(kernel):
            return _sdpa(q, k, v, lengths)
    return run


def _flash_attn(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    """The flash-attn package (half precision, no mask)."""
    if lengths is not None:
        raise ConfigError("attention back end 'flash_attn' cannot leave out keys by length here. Use sdpa.")
    check_backend("flash_attn")
    from flash_attn import flash_attn_func
    return flash_attn_func(q, k, v)


BACKENDS: dict[str, Backend] = {
    "sdpa": _sdpa,
    "math": _forced(SDPBackend.MATH),
    "efficient": _forced(SDPBackend.EFFICIENT_ATTENTION),
    "cudnn": _forced(SDPBackend.CUDNN_ATTENTION),
    "flash_attn": _flash_attn,
}
"""Name → kernel. `B L N K` in and out."""
