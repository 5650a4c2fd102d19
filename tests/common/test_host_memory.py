"""Main memory within the limits of control groups."""

from pathlib import Path

import pytest

from common.host_memory import HostMemory, host_memory

GIB = 2**30


def machine(root: Path, group: str, files: dict[str, str]) -> Path:
    """A machine of 64 GiB, 48 of them free, with the files of its control groups."""
    files = {"proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {48 * 2**20} kB\nHugePages: 0\n",
             "proc/self/cgroup": group, **files}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def second_version(folder: str, limit: str, used: int = 0, cache: int = 0) -> dict[str, str]:
    return {f"{folder}/memory.max": limit, f"{folder}/memory.current": str(used),
            f"{folder}/memory.stat": f"anon 5\ninactive_file {cache}\n"}


def test_without_limits_it_is_the_machines(tmp_path: Path) -> None:
    assert host_memory(machine(tmp_path, "", {})) == HostMemory(48 * GIB, 64 * GIB)
    unlimited = second_version("sys/fs/cgroup/user.slice", "max\n", 7 * GIB)
    assert host_memory(machine(tmp_path, "0::/user.slice\n", unlimited)) == HostMemory(48 * GIB, 64 * GIB)


def test_a_containers_limit_counts_and_cached_files_are_free(tmp_path: Path) -> None:
    files = second_version("sys/fs/cgroup", str(32 * GIB), 20 * GIB, 15 * GIB)
    assert host_memory(machine(tmp_path, "0::/\n", files)) == HostMemory(27 * GIB, 32 * GIB)


def test_limits_around_the_processs_own_group_count(tmp_path: Path) -> None:
    job = "sys/fs/cgroup/slurm/job_1"
    files = second_version(job, str(40 * GIB), 10 * GIB) | second_version(f"{job}/step/user", "max", 3 * GIB)
    assert host_memory(machine(tmp_path, "0::/slurm/job_1/step/user\n", files)) == HostMemory(30 * GIB, 40 * GIB)


@pytest.mark.parametrize("folder", ["sys/fs/cgroup/memory/docker/1", "sys/fs/cgroup/memory"])
def test_the_first_version_of_control_groups(tmp_path: Path, folder: str) -> None:
    """From inside a container its path may be missing, and the base is its own group."""
    files = {f"{folder}/memory.limit_in_bytes": str(16 * GIB), f"{folder}/memory.usage_in_bytes": str(4 * GIB),
             f"{folder}/memory.stat": f"cache 3\ntotal_inactive_file {GIB}\n"}
    group = "3:cpu,cpuacct:/docker/1\n2:memory:/docker/1\n0::/\n"
    assert host_memory(machine(tmp_path, group, files)) == HostMemory(13 * GIB, 16 * GIB)


def test_no_more_is_free_than_nothing(tmp_path: Path) -> None:
    files = second_version("sys/fs/cgroup", str(8 * GIB), 9 * GIB)
    assert host_memory(machine(tmp_path, "0::/\n", files)) == HostMemory(0, 8 * GIB)


def test_where_there_is_no_proc_psutil_tells(tmp_path: Path) -> None:
    import psutil

    found = host_memory(tmp_path)
    assert found.total == psutil.virtual_memory().total and 0 < found.free < found.total


def test_this_process_has_some() -> None:
    found = host_memory()
    assert 0 < found.free <= found.total
