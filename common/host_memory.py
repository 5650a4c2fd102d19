"""Main memory that this process may have, within the limits of the container or job that it runs in."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostMemory:
    """Bytes."""

    free: int
    total: int


def host_memory(root: Path = Path("/")) -> HostMemory:
    """What is free and what there is at most; ModuleNotFoundError where there is neither /proc nor psutil.

    The limits are those of control groups (Docker, Slurm, systemd), of the process's own group and all around it; files
    that the kernel keeps in memory and would give up count as free. `root` holds `proc` and `sys`.
    """
    found = _of_machine(root)
    for limit, used in _limits(root):
        found = HostMemory(min(found.free, max(0, limit - used)), min(found.total, limit))
    return found


def _of_machine(root: Path) -> HostMemory:
    text = _text(root / "proc/meminfo")
    if text:
        rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        free, total = (int(rows[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
        return HostMemory(free, total)
    import psutil

    memory = psutil.virtual_memory()
    return HostMemory(memory.available, memory.total)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use) of each group that holds the process, by either version of Linux's control groups."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base, names, reclaimable = root / "sys/fs/cgroup", ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            reclaimable = "total_inactive_file"
        else:
            continue
        # Inside a container the path may be one outside of it; its own group then is the base.
        group = base / path.lstrip("/")
        for folder in (group, *(one for one in group.parents if one.is_relative_to(base))):
            limit, used = (_number(folder / name) for name in names)
            if limit is not None:
                statistics = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines())
                yield limit, (used or 0) - int(statistics.get(reclaimable, 0))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # another system, or not ours to read
        return ""


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None
