"""torch, driver and GPUs: what is there, and whether it computes."""

from collections.abc import Iterator
from pathlib import Path
import re
import shutil
import subprocess
import warnings

from tools.health.finding import Finding, Patient, gib, told

BUSY_SHARE = 0.2
PRODUCT_TOLERANCE = 2e-2
REINSTALL = "reinstall torch for this machine: python tools/install.py, or the command that https://pytorch.org shows"


def has_cuda() -> bool:
    """Whether torch is there and sees a CUDA device; quietly."""
    try:
        import torch
    except (ImportError, OSError):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.is_available()


def cuda_devices() -> int:
    """Number of CUDA devices; 0 without torch."""
    if not has_cuda():
        return 0
    import torch

    return torch.cuda.device_count()


def driver_version() -> str | None:
    """The NVIDIA driver's version; None where no driver answers."""
    command = shutil.which("nvidia-smi")
    if command is not None:
        asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=15)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    kernel = Path("/proc/driver/nvidia/version")
    match = re.search(r"Kernel Module\s+(?:for \S+\s+)?(\d+\.[\d.]+)", kernel.read_text()) if kernel.is_file() else None
    return match[1] if match else None


def check_torch(_: Patient) -> Iterator[Finding]:
    """Build, driver, and whether the two find each other."""
    import torch

    driver = driver_version()
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else (
        f"ROCm {torch.version.hip}" if torch.version.hip else "CPU only")
    found = f"torch {torch.__version__}, {build}; {torch.get_num_threads()} threads; driver {driver or 'none'}"
    if has_cuda():
        yield Finding("ok", "torch", found)
    elif torch.backends.mps.is_available():
        yield Finding("ok", "torch", f"{found}; Apple GPU (mps)")
    elif driver and not (torch.version.cuda or torch.version.hip):
        yield Finding("FAIL", "torch", f"{found}: a build without CUDA on a machine with a GPU",
                      REINSTALL.replace("python", "pip uninstall -y torch && python", 1))
    elif driver:
        yield Finding("FAIL", "torch", f"{found}, and yet no GPU is seen ({_why_no_gpu()})",
                      "update the driver, or take a torch of an older CUDA; look whether CUDA_VISIBLE_DEVICES is set "
                      "and whether this container was started with the GPU")
    else:
        yield Finding("warn", "torch", f"{found}; no GPU: everything runs on the CPU", "fine for the demo and for "
                      "caching small sets; a 14B model needs an NVIDIA GPU and its driver")


def _why_no_gpu() -> str:
    import torch

    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return told(error)
    return "no reason given"


def check_devices(_: Patient) -> Iterator[Finding]:
    """Each CUDA device: name, capability, memory, units, and one product of matrices."""
    if not has_cuda():
        return
    import torch

    from wan.memory.fp8_model import FIRST_CAPABILITY_WITH_FP8

    for index in range(torch.cuda.device_count()):
        device, name = f"cuda:{index}", f"GPU {index}"
        properties = torch.cuda.get_device_properties(device)
        capability = torch.cuda.get_device_capability(device)
        bf16 = capability >= (8, 0)
        fp8 = "yes" if capability >= FIRST_CAPABILITY_WITH_FP8 else "no (storing weights in fp8 works all the same)"
        units = f"bf16 units {'yes' if bf16 else 'no, emulated'}, fp8 units {fp8}"
        what = f"{properties.name}, capability {capability[0]}.{capability[1]}"
        try:
            free, total = torch.cuda.mem_get_info(device)
            error = _product_error(device)
        except RuntimeError as problem:
            kernels = " ".join(torch.cuda.get_arch_list())
            yield Finding("FAIL", name, f"{what}: does not compute ({told(problem)})",
                          f"this torch has kernels for {kernels}; {REINSTALL}")
            continue
        found = f"{what}, {gib(free)} free of {gib(total)}, {units}; a bf16 product is off by {error:.1e}"
        if not error <= PRODUCT_TOLERANCE:
            yield Finding("FAIL", name, found, "the card computes wrongly: take back overclocking, look at dmesg for "
                                               "Xid errors, try another card")
        elif free < (1 - BUSY_SHARE) * total:
            yield Finding("warn", name, found, "something else holds memory there: nvidia-smi shows what")
        elif not bf16:
            yield Finding("warn", name, found, "train with --mixed_precision no: bfloat16 is emulated and slow here")
        else:
            yield Finding("ok", name, found)


def _product_error(device: str) -> float:
    """Largest error of a bfloat16 product against float64 on the CPU, as a share of the largest entry."""
    import torch

    a, b = (torch.randn(256, 256, generator=torch.Generator().manual_seed(i)).bfloat16() for i in range(2))
    right = a.double() @ b.double()
    found = (a.to(device) @ b.to(device)).double().cpu()
    return float((found - right).abs().max() / right.abs().max())
