"""Make `.venv` and install what OmniTuner needs: torch in a step of its own, then the pinned requirements.

    python tools/install.py            everything that the main job needs
    python tools/install.py --dev      and what the tests and linters need

Needs nothing but Python 3.11 or newer. A machine without an NVIDIA driver gets torch's CPU build; `TORCH="…"` in the
environment (any pip arguments, for example `TORCH="torch==2.12.0 --index-url https://…"`) overrides that choice.
"""

import hashlib
import os
from pathlib import Path
import platform
import shlex
import shutil
import subprocess
import sys
import venv

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
TORCH_VERSION = "2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TRITON_VERSION = "3.6.0"
"""For the tests of our kernels, which Triton interprets and compiles without a GPU. A torch for CUDA has its own."""


def venv_python() -> Path:
    """Interpreter inside `.venv`."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver answers here."""
    if Path("/proc/driver/nvidia/version").exists():
        return True
    command = shutil.which("nvidia-smi")
    return command is not None and subprocess.run([command, "-L"], capture_output=True).returncode == 0


def pip(*arguments: str, quiet_failure: bool = False) -> bool:
    """Run pip of `.venv`; whether it succeeded."""
    command = [str(venv_python()), "-m", "pip", "install", "--disable-pip-version-check", "-q", *arguments]
    result = subprocess.run(command, capture_output=quiet_failure)
    return result.returncode == 0


def install_torch() -> None:
    """Install torch as the machine needs it, unless a fitting one is there."""
    override = os.environ.get("TORCH")
    if override:
        print(f"torch: {override} (from TORCH)", flush=True)
        if not pip(*shlex.split(override)):
            sys.exit("error: pip could not install the torch that TORCH names")
        return
    check = "import torch,sys; sys.exit(torch.__version__.split('+')[0] != sys.argv[1])"
    if subprocess.run([str(venv_python()), "-c", check, TORCH_VERSION], capture_output=True).returncode == 0:
        return
    if has_nvidia_driver() or platform.system() == "Darwin":
        print(f"torch: {TORCH_VERSION}, the ordinary build", flush=True)
        if pip(f"torch=={TORCH_VERSION}"):
            return
    else:
        print(f"torch: {TORCH_VERSION}, CPU build (no NVIDIA driver found)", flush=True)
        local = f"torch=={TORCH_VERSION}+cpu"
        if pip(local, quiet_failure=True) or pip(local, "--extra-index-url", CPU_INDEX):
            return
    sys.exit("error: torch could not be installed. Set TORCH to the pip arguments that install it on this machine,\n"
             '  for example  TORCH="torch --index-url https://download.pytorch.org/whl/cu130"')


def install_triton() -> None:
    """Install Triton where torch has brought none; where there is no build of it, tests of kernels are skipped."""
    # Looked for, not imported: one that does not load here is torch's own all the same, and is not to be replaced.
    check = "import importlib.util,sys; sys.exit(importlib.util.find_spec('triton') is None)"
    has_one = subprocess.run([str(venv_python()), "-c", check], capture_output=True).returncode == 0
    if has_one or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return
    if not pip(f"triton=={TRITON_VERSION}", quiet_failure=True):
        print(f"note: triton {TRITON_VERSION} could not be installed; tests of GPU kernels will be skipped", flush=True)


def main() -> None:
    """Create the environment where it is missing or older than the requirement files."""
    if sys.version_info < (3, 11):
        sys.exit(f"error: Python {platform.python_version()}; OmniTuner needs 3.11 or newer")
    files = ["requirements.txt"] + (["requirements-dev.txt"] if "--dev" in sys.argv[1:] else [])
    wanted = "".join([*((ROOT / name).read_text() for name in files), TRITON_VERSION])
    digest = hashlib.sha256(wanted.encode()).hexdigest()
    stamp = VENV / f".installed-{len(files)}"
    if venv_python().exists() and stamp.exists() and stamp.read_text() == digest:
        return
    if not venv_python().exists():
        print(f"making {VENV.name} with Python {platform.python_version()}", flush=True)
        venv.create(VENV, with_pip=True)
    install_torch()
    print(f"installing {' and '.join(files)} (some minutes the first time)", flush=True)
    if not pip(*[part for name in files for part in ("-r", str(ROOT / name))]):
        sys.exit("error: pip could not install the requirements; its message is above")
    if "--dev" in sys.argv[1:]:
        install_triton()
    stamp.write_text(digest)


if __name__ == "__main__":
    main()
