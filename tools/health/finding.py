"""What a check found, and running checks so that none can stop the others."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
import sys
from typing import Literal

Status = Literal["ok", "warn", "FAIL"]

PACKAGE_OF_MODULE = {"cv2": "opencv-python-headless", "PIL": "pillow", "yaml": "pyyaml"}
"""Modules that are not called as the package that brings them."""
LONGEST = 300
"""Characters of another program's error text that are shown."""


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    status: Status
    name: str
    found: str
    remedy: str = ""
    """What to do; every warn and FAIL has one."""

    def __post_init__(self) -> None:
        assert (self.status == "ok") != bool(self.remedy), f"{self.name}: what is not ok, and only that, has a remedy"

    def text(self) -> str:
        """The line, and below it what to do."""
        line = f"{self.status:<4}  {self.name}: {self.found}"
        return line + (f"\n      -> {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Patient:
    """What is examined beside the machine itself."""

    output_dir: Path = field(default_factory=Path)
    cache_dir: Path = field(default_factory=Path)
    device: str = "cpu"
    """Where kernels are tried: this machine's GPU, or the CPU."""


Check = Callable[[Patient], Iterable[Finding]]


def examine(name: str, check: Check, patient: Patient) -> Iterator[Finding]:
    """The findings of one check; an exception inside it becomes a FAIL with its text."""
    try:
        yield from check(patient)
    except ModuleNotFoundError as error:
        package = PACKAGE_OF_MODULE.get((error.name or "").partition(".")[0], (error.name or "").partition(".")[0])
        yield Finding("FAIL", name, f"needs the package {package}, which is not installed", pip_install(package))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - third parties raise anything; the others must go on
        yield Finding("FAIL", name, told(error), "mend what the message says, and run the doctor again; if it says "
                      "nothing that you can mend, report it with the output of --json")


def pip_install(*requirements: str) -> str:
    """The command that installs them into this very environment; ranges in quotes, for the shell."""
    python = "python" if sys.prefix != sys.base_prefix else sys.executable
    return f"{python} -m pip install " + " ".join(f'"{one}"' if set("<>=") & set(one) else one for one in requirements)


def told(error: BaseException) -> str:
    """An exception in one line: its kind, and its text cut to a readable length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:LONGEST]}{'…' if len(text) > LONGEST else ''}"


def gib(count: float) -> str:
    """Bytes as GiB."""
    return f"{count / 2**30:.1f} GiB"
