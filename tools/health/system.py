"""Python, system, processors, memory, text encoding, clock."""

from collections.abc import Iterator
from datetime import datetime
import locale
import os
from pathlib import Path
import platform
import sys
import time

from common.host_memory import host_memory
from tools.health.finding import Finding, Patient, gib

ROOT = Path(__file__).resolve().parent.parent.parent
OLDEST_PYTHON = (3, 11)
FEWEST_GIB_FREE = 4
CONSOLE_PROBE = "±空é"


def check_python(_: Patient) -> Iterator[Finding]:
    """Version, build, place, system."""
    bits = 64 if sys.maxsize > 2**32 else 32
    place = "in a virtual environment" if sys.prefix != sys.base_prefix else "outside a virtual environment"
    found = (f"{platform.python_implementation()} {platform.python_version()}, {bits} bit, {place} ({sys.executable}); "
             f"{platform.platform()}")
    if sys.version_info < OLDEST_PYTHON or bits != 64:
        yield Finding("FAIL", "python", found, "install 64-bit Python 3.11 or newer and make a new environment with "
                                               "it: python3.12 tools/install.py")
        return
    yield Finding("ok", "python", found)


def check_processors(_: Patient) -> Iterator[Finding]:
    """Cores that this process may use, threads that are set, main memory."""
    cores = _cores()
    threads = os.environ.get("OMP_NUM_THREADS")
    found = f"{cores:g} of {os.cpu_count()} cores for this process; OMP_NUM_THREADS {threads or 'not set'}"
    own = int(threads) if threads and threads.isdigit() else _affinity()  # what torch starts
    if own > cores:
        yield Finding("warn", "processors", found, f"{own} threads on fewer cores slow each other down: "
                                                   f"export OMP_NUM_THREADS={max(1, int(cores))}")
    else:
        yield Finding("ok", "processors", found)
    try:
        memory = host_memory()
    except ModuleNotFoundError:
        yield Finding("ok", "memory", "cannot be read on this system without psutil")
        return
    found = f"{gib(memory.free)} free of {gib(memory.total)}"
    if memory.free < FEWEST_GIB_FREE * 2**30:
        yield Finding("warn", "memory", found, "close other programs: the text encoder alone takes about 11 GiB in "
                                               "bfloat16")
    else:
        yield Finding("ok", "memory", found)


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cores() -> float:
    """Processors by affinity, and by the container's quota where that is less."""
    cores = float(_affinity())
    quota = Path("/sys/fs/cgroup/cpu.max")
    words = quota.read_text().split() if quota.is_file() else []
    if len(words) == 2 and words[0].isdigit():
        cores = min(cores, int(words[0]) / int(words[1]))
    return cores


def check_encoding(_: Patient) -> Iterator[Finding]:
    """Encodings of file names, of files and of the console. Our own files are always UTF-8."""
    names, files = sys.getfilesystemencoding(), locale.getpreferredencoding(False)
    console = getattr(sys.stdout, "encoding", None) or "unknown"
    found = f"file names {names}, files {files}, console {console}, UTF-8 mode {'on' if sys.flags.utf8_mode else 'off'}"
    if names.lower().replace("-", "") != "utf8":
        yield Finding("FAIL", "encoding", found, "file names with other letters than a to z cannot be opened: set "
                                                 "PYTHONUTF8=1 (or LANG=C.UTF-8)")
    elif not _can_write(console) or files.lower().replace("-", "") not in ("utf8", "cp65001"):
        yield Finding("warn", "encoding", found, "captions and paths print as question marks, and other programs' "
                                                 "files may be misread: set PYTHONUTF8=1")
    else:
        yield Finding("ok", "encoding", found)


def _can_write(encoding: str) -> bool:
    try:
        CONSOLE_PROBE.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def check_clock(_: Patient) -> Iterator[Finding]:
    """A clock that stands before these very files misleads everything that goes by time."""
    now = datetime.now().astimezone()
    found = f"{now:%Y-%m-%d %H:%M:%S %Z (UTC%z)}"
    newest = max(path.stat().st_mtime for path in (ROOT / "pyproject.toml", Path(__file__)))
    if newest > time.time() + 60:
        yield Finding("warn", "clock", f"{found}: earlier than this program's own files", "set the clock; names of "
                      "logs and the order of checkpoints follow it")
    else:
        yield Finding("ok", "clock", found)
