"""Which attention back end a run takes, tried once before a model is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
import time

import torch
from torch import Tensor

from common.dtypes import dtype_name
from common.errors import ConfigError
from wan.modules.attention import FEW_KEYS, HALF, attend, check_backend
from wan.modules.attention_names import AUTO, ONLY_FORWARD, plain_name

FIRST_FOR_CUDNN = (9, 0)
"""Compute capability from which cuDNN's kernel is the fastest that torch brings (H100)."""
EVERYWHERE = ("sdpa", "math")
"""What computes on every device in every precision."""
CHECKED = 64
"""Queries whose results are compared with exact ones."""
TIMED_TOKENS = 8192
ROUNDS = 3
LARGEST_ERROR = {"exact": 0.02, "eight bits": 0.15}
"""Share of the norm by which results may differ; half precision itself comes to 0.003, eight bits to 0.06."""


@dataclass(frozen=True)
class ChosenAttention:
    """A back end that was tried."""

    name: str
    words: str
    """For people: what was chosen, why, and how fast it is here."""


def choose_attention(name: str | None, device: torch.device | str, dtype: torch.dtype, *, heads: int,
                     head_dim: int, trains: bool) -> ChosenAttention:
    """The back end that `name` (None: auto) comes to on `device`, after a small trial of it there.

    Raises ConfigError where a back end that was asked for is missing, cannot train, or computes wrongly here; `auto`
    falls back to torch's own choice and says why.
    """
    asked, device = plain_name(name or AUTO), torch.device(device)
    check_backend(asked)
    if trains and asked in ONLY_FORWARD:
        raise ConfigError(f"attention back end '{asked}' has no backward pass, so it cannot train; it can generate. "
                          f"Use {AUTO}, or fa4.")
    is_timed = device.type == "cuda" and dtype in HALF
    is_new = is_timed and torch.cuda.get_device_capability(device) >= FIRST_FOR_CUDNN
    wanted = ("cudnn" if is_new else "sdpa") if asked == AUTO else asked
    where = f"{device.type} in {dtype_name(dtype)}"
    try:
        if not is_timed:
            if wanted not in EVERYWHERE:
                _compare(wanted, device, dtype, head_dim, trains=trains)
            return ChosenAttention(wanted, f"{wanted} ({where}: not timed)")
        speed = _tried(wanted, device, dtype, heads, head_dim, trains=trains)
    except Exception as error:  # a package's kernels raise anything
        told = " ".join(str(error).split()[:40])
        if asked != AUTO:
            raise ConfigError(f"attention back end '{asked}' does not run on {where} here: {told}. Use {AUTO}, or try "
                              "python tools/doctor.py.") from error
        return ChosenAttention("sdpa", f"sdpa, because {wanted} does not run here ({told})")
    return ChosenAttention(wanted, f"{wanted}{' (auto)' if asked == AUTO else ''}, {speed}")


def _tried(name: str, device: torch.device, dtype: torch.dtype, heads: int, head_dim: int, *, trains: bool) -> str:
    """Compare some queries with exact attention, then time; how fast it was, for people."""
    _compare(name, device, dtype, head_dim, trains=trains)
    try:
        return f"{_timed(name, device, dtype, heads, head_dim, trains=trains)} on {TIMED_TOKENS} tokens here"
    except torch.OutOfMemoryError:  # `math` holds all scores; shorter clips may fit all the same
        return f"too little memory to time it on {TIMED_TOKENS} tokens here"


def _timed(name: str, device: torch.device, dtype: torch.dtype, heads: int, head_dim: int, *, trains: bool) -> str:
    with torch.random.fork_rng(devices=[device]):
        q, k, v = (torch.randn(1, TIMED_TOKENS, heads, head_dim, device=device, dtype=dtype, requires_grad=trains)
                   for _ in range(3))
        gradient = torch.randn_like(q)
    work = 4 * TIMED_TOKENS**2 * heads * head_dim / 1e12
    with torch.set_grad_enabled(trains):
        out = attend(q, k, v, backend=name)
        words = f"{work / _seconds(lambda: attend(q, k, v, backend=name)):.0f} TFLOP/s forward"
        if trains:
            backward = _seconds(lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True))
            words += f", {2.5 * work / backward:.0f} backward"
    return words


def _compare(name: str, device: torch.device, dtype: torch.dtype, head_dim: int, *, trains: bool) -> None:
    allowed = LARGEST_ERROR["eight bits" if name in ONLY_FORWARD else "exact"]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, FEW_KEYS + 64, 2, head_dim, device=device, dtype=dtype) for _ in range(3))
        gradient = torch.randn(1, CHECKED, 2, head_dim, device=device, dtype=dtype)
    found = _results(name, (q, k, v), gradient, trains=trains)
    right = _results("math", (q.double(), k.double(), v.double()), gradient.double(), trains=trains)
    for one, exact in zip(found, right, strict=True):
        error = float((one.double() - exact).norm() / exact.norm())
        if not error <= allowed:  # NaN too
            raise ConfigError(f"it is off by {error:.1e} of the exact result, where {allowed:.0e} is allowed")


def _results(name: str, given: tuple[Tensor, Tensor, Tensor], gradient: Tensor, *, trains: bool) -> list[Tensor]:
    """The first queries' results and, in training, what their gradient makes of all inputs."""
    q, k, v = (one.detach().requires_grad_(trains) for one in given)
    if name == "math":
        q_seen = q[:, :CHECKED]
        out = attend(q_seen, k, v, backend=name)
    else:
        out = attend(q, k, v, backend=name)[:, :CHECKED]
    if not trains:
        return [out]
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), gradient)]


def _seconds(run: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times[1:])
