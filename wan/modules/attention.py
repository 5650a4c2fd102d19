"""`attend()`: attention through named back ends. Kernels are called here and, by halves, in `attention_halves`."""

from collections.abc import Callable
from importlib.util import find_spec

from jaxtyping import Float, Int
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common.errors import ConfigError, nearest
from wan.modules import attention_ops
from wan.modules.attention_names import AUTO, plain_name

Backend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
HALF = (torch.bfloat16, torch.float16)
FEW_KEYS = 4096
"""Below this many keys (text, pictures, short clips) cuDNN's kernel is as fast as the packages' (measured, H200)."""
KEYS_A_PROGRAM, PROCESSORS = 128, 132
"""cuDNN's backward pass has a program for each head and so many keys; an H200 runs so many programs at a time."""
BUSY, BUSY_SHARE = 640, 0.85
"""So many programs keep it busy, and any number that leaves it so busy over all its rounds: 120 (40 heads, 257 keys) do
and 160 (512 keys) do not; in parts the first were no faster and the second were (measured)."""
MOST_PARTS, SHORTEST_PART = 16, 512
"""Of the queries of a sample, in `in_parts`."""


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


PACKAGES = {
    "flash_attn": ("flash_attn.flash_attn_interface", "flash-attn", "pip install flash-attn"),
    "flash3": ("flash_attn_interface", "FlashAttention-3", "build it from the folder hopper of the flash-attention "
                                                           "repository"),
    "fa4": ("flash_attn.cute", "flash-attn-4", "pip install --pre flash-attn-4"),
    "cudnn_fp8": ("cudnn", "nvidia-cudnn-frontend", "pip install nvidia-cudnn-frontend"),
    "sageattn": ("sageattention", "sageattention", "pip install sageattention"),
}
"""Back end → (module, name, how to install it)."""


def check_backend(name: str) -> None:
    """Refuse an unknown back end, or one whose package or GPU is missing; the ConfigError says what to do."""
    name = plain_name(name)
    if name == AUTO:
        return
    if name not in BACKENDS:
        raise ConfigError(f"attention back end '{name}' is unknown{nearest(name, BACKENDS)}. "
                          f"Use one of {AUTO}, {', '.join(BACKENDS)}.")
    if name in PACKAGES:
        module, package, remedy = PACKAGES[name]
        if not _is_there(module):
            raise ConfigError(f"attention back end '{name}' needs {package}, which is not installed. Install it "
                              f"({remedy}; NVIDIA GPUs only) or use {AUTO}, which needs no package.")
    if (name == "cudnn" or name in PACKAGES) and not torch.cuda.is_available():
        raise ConfigError(f"attention back end '{name}' needs an NVIDIA GPU, and none was found. Use {AUTO}.")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package around it is missing
        return False


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


def _cudnn(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
    """cuDNN's kernel by its own name, so that nothing else can be chosen in a graph."""
    if lengths is not None:
        return _forced(SDPBackend.CUDNN_ATTENTION)(q, k, v, lengths)
    needs_backward = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), None, needs_backward)[0]
        return out.transpose(1, 2)

    # Compiled, keys and values are repeated when the backward pass begins; else their copies would be kept until then.
    if needs_backward and torch.compiler.is_compiling():
        return in_parts(run, q, k, v, parts_of(q, k))
    return run(q, k, v)


def parts_of(q: Float[Tensor, "B L N K"], k: Float[Tensor, "B S N K"]) -> int:
    """How many parts the queries of a sample are cut into, so that attention to few keys (text, pictures) has enough to
    do at once in its backward pass: the least that divides them evenly and suffices, or else the most.
    """
    samples, length, heads, _ = q.shape
    programs = samples * heads * -(-k.shape[1] // KEYS_A_PROGRAM)
    if programs >= BUSY_SHARE * PROCESSORS * -(-programs // PROCESSORS):
        return 1
    wanted = min(-(-BUSY // programs), MOST_PARTS, length // SHORTEST_PART)
    even = [1, *(count for count in range(2, MOST_PARTS + 1)
                 if length % count == 0 and length // count >= SHORTEST_PART)]
    return next((count for count in even if count >= wanted), even[-1])


def in_parts(run: Callable[[Tensor, Tensor, Tensor], Tensor], q: Float[Tensor, "B L N K"], k: Float[Tensor, "B S N K"],
             v: Float[Tensor, "B S N K"], parts: int) -> Float[Tensor, "B L N K"]:
    """`run` with the queries of a sample as `parts` samples, each with all keys: the same numbers, more at once."""
    if parts == 1:
        return run(q, k, v)
    cut = q.unflatten(1, (parts, -1)).flatten(0, 1)
    keys, values = (one[:, None].expand(-1, parts, -1, -1, -1).flatten(0, 1) for one in (k, v))
    return run(cut, keys, values).unflatten(0, (len(q), parts)).flatten(1, 2)


def _for_many_keys(run: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Backend:
    """`run` where there are many keys of half precision, else cuDNN or, in float32, torch's choice."""
    def choose(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is not None or q.dtype not in HALF:
            return _sdpa(q, k, v, lengths)
        return run(q, k, v) if k.shape[1] >= FEW_KEYS else _cudnn(q, k, v, None)
    return choose


def _fa4(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out: Tensor = attention_ops.fa4(q, k, v)[0]
    return out


def _of_package(name: str, run: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Backend:
    """A package's kernel (half precision, no mask)."""
    def checked(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is not None:
            raise ConfigError(f"attention back end '{name}' cannot leave out keys by length here. Use {AUTO}.")
        return run(q, k, v)
    return checked


def _flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    check_backend("flash_attn")
    from flash_attn import flash_attn_func
    out: Tensor = flash_attn_func(q, k, v)
    return out


def _flash3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    check_backend("flash3")
    from flash_attn_interface import flash_attn_func
    found = flash_attn_func(q, k, v)
    out: Tensor = found[0] if isinstance(found, tuple) else found  # its first versions return the denominators too
    return out


def _sage(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    check_backend("sageattn")
    from sageattention import sageattn
    out: Tensor = sageattn(q, k, v, tensor_layout="NHD")
    return out


BACKENDS: dict[str, Backend] = {
    "sdpa": _sdpa,
    "cudnn": _cudnn,
    "fa4": _for_many_keys(_fa4),
    "flash_attn": _of_package("flash_attn", _flash_attn),
    "flash3": _of_package("flash3", _flash3),
    "efficient": _forced(SDPBackend.EFFICIENT_ATTENTION),
    "math": _forced(SDPBackend.MATH),
    "cudnn_fp8": _for_many_keys(attention_ops.attend_in_fp8),
    "sageattn": _of_package("sageattn", _sage),
}
"""Name → kernel. `B L N K` in and out."""
