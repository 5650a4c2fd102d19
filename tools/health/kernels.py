"""Attention back ends and the 8-bit optimiser, run on the device and compared with what must come out."""

from collections.abc import Iterator
from importlib.util import find_spec
import logging
import sys
from typing import TYPE_CHECKING
import warnings

from tools.health.finding import Finding, Patient, told

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SHAPE = (2, 128, 2, 128)
"""Batch, tokens, heads, width of a head: Wan's width, little of the rest."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 4e-3}
"""Largest difference from the math path in float64, as a share of the largest value: some roundings of the dtype."""
EIGHT_BITS = 0.2
"""The same for what rounds to eight bits."""
NO_KERNEL = ("No available kernel", "No viable backend")
"""torch's words for a back end that this kind of device does not have."""
LEARNING_RATE = 1e-2
STEP_TOLERANCE = 0.1


def check_attention(patient: Patient) -> Iterator[Finding]:
    """Every back end of `wan.modules.attention`, forward and backward."""
    import torch

    from wan.modules.attention import BACKENDS

    dtype = torch.float32
    if patient.device.startswith("cuda"):
        dtype = torch.bfloat16 if torch.cuda.get_device_capability(patient.device) >= (8, 0) else torch.float16
    for name in BACKENDS:
        yield _probe(name, patient.device, dtype)


def _probe(name: str, device: str, dtype: "torch.dtype") -> Finding:
    """One back end; what only a chosen one would need is no failure."""
    from common.dtypes import dtype_name
    from common.errors import ConfigError
    from wan.modules.attention import PACKAGES, check_backend
    from wan.modules.attention_names import ONLY_FORWARD

    title = f"attention {name}"
    try:
        check_backend(name)
    except ConfigError as error:
        is_absent = "not installed" in str(error)
        return Finding("ok", title, "not installed; optional" if is_absent else "for NVIDIA GPUs only; optional")
    if device == "cpu" and name in PACKAGES:
        return Finding("ok", title, "installed; for NVIDIA GPUs only")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch tells there why each kernel cannot serve
            errors = _errors(name, device, dtype)
    except Exception as error:  # noqa: BLE001 - a package's kernels raise anything; the other back ends must be tried
        return _broken(name, device, error)
    worst, kind = max(errors.values()), dtype_name(dtype)
    allowed = EIGHT_BITS if name in ONLY_FORWARD else TOLERANCE[kind]
    found = (f"{device} {kind}: " + ", ".join(f"{part} {error:.1e}" for part, error in errors.items())
             + f" off the math path (allowed {allowed:.0e})")
    if not worst <= allowed:  # NaN too
        return Finding("FAIL", title, found, "it computes wrongly here: use another back end (--attn_mode), and update "
                                             "torch and the driver")
    return Finding("ok", title, found)


def _broken(name: str, device: str, error: Exception) -> Finding:
    """A back end that raised: what the default needs and what was installed must work, the others may be left alone."""
    title, found = f"attention {name}", f"does not run on {device} ({told(error)})"
    if name in ("sdpa", "math"):
        return Finding("FAIL", title, found, "reinstall torch: python tools/install.py")
    if name == "flash_attn":
        return Finding("FAIL", title, f"is installed and {found}", "pip uninstall flash-attn (sdpa is as fast or "
                                                                   "faster), or build it for this torch")
    if device == "cpu" and any(text in str(error) for text in NO_KERNEL):
        return Finding("ok", title, "has no kernel for the CPU; optional")
    return Finding("warn", title, found, "do not choose it; sdpa is the default")


def _errors(name: str, device: str, dtype: "torch.dtype") -> dict[str, float]:
    """Largest differences of output and gradients from the math path in float64, as shares of the largest value."""
    import torch

    from wan.modules.attention import FEW_KEYS, PACKAGES
    from wan.modules.attention_names import ONLY_FORWARD

    draws = torch.Generator().manual_seed(0)
    shape = (1, FEW_KEYS, *SHAPE[2:]) if name in PACKAGES else SHAPE  # below so many keys some take another kernel
    drawn = [torch.randn(shape, generator=draws).to(device, dtype) for _ in range(4)]
    lengths = torch.tensor([SHAPE[1], SHAPE[1] // 2], device=device)
    cases = {"output": None} if name in PACKAGES else {"output": None, "masked": lengths}
    errors: dict[str, float] = {}
    for case, valid in cases.items():
        trains = name not in ONLY_FORWARD
        found = _run(name, drawn, valid, trains=trains)
        right = _run("math", [one.double() for one in drawn], valid, trains=trains)
        shares = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, right, strict=True)]
        errors[case] = shares[0]
        if trains:
            errors["gradient" if case == "output" else f"{case} gradient"] = max(shares[1:])
    return errors


def _run(name: str, drawn: "list[Tensor]", lengths: "Tensor | None", *, trains: bool) -> "list[Tensor]":
    """Output and, where there is a backward pass, the gradients of q, k, v for a given gradient of the output."""
    import torch

    from wan.modules.attention import attend

    q, k, v = (one.detach().clone().requires_grad_(trains) for one in drawn[:3])
    with torch.set_grad_enabled(trains):
        output = attend(q, k, v, lengths, backend=name)
        if not trains:
            return [output]
        return [output.detach(), *torch.autograd.grad(output, (q, k, v), drawn[3])]


def check_bitsandbytes(patient: Patient) -> Iterator[Finding]:
    """Two steps of 8-bit AdamW under a constant gradient: each moves every weight by the learning rate."""
    if sys.platform == "darwin" and find_spec("bitsandbytes") is None:
        yield Finding("ok", "bitsandbytes", "has no build for macOS; --optimizer_type adamw works")
        return
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of 4-bit kernels, which nothing here uses
    import bitsandbytes
    import torch

    draws = torch.Generator().manual_seed(0)
    start = torch.randn(96, 96, generator=draws)  # above 4096 numbers, so that the states are 8-bit
    signs = torch.where(torch.rand(96, 96, generator=draws) < 0.5, -1.0, 1.0)
    weight = torch.nn.Parameter(start.to(patient.device, copy=True))
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=LEARNING_RATE, weight_decay=0.0)
    gradient = signs * (0.5 + torch.rand(96, 96, generator=draws))
    for _ in range(2):
        weight.grad = gradient.to(patient.device)
        optimizer.step()
    moved = (weight.detach().cpu() - start) / (-2 * LEARNING_RATE * signs)
    error = float((moved - 1).abs().max())
    found = f"{bitsandbytes.__version__}: two 8-bit steps on {patient.device} are off by {error:.1%} of a step"
    if not error <= STEP_TOLERANCE:
        yield Finding("FAIL", "bitsandbytes", found, "its kernels compute wrongly here: pip install -U bitsandbytes, "
                                                     "or train with --optimizer_type adamw")
    else:
        yield Finding("ok", "bitsandbytes", found)
