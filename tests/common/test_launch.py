"""Processes that accelerate leaves out on a CPU."""

from collections.abc import Callable
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import psutil
import pytest

from common import launch
from common.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("words", "expected"), [
    ("accelerate launch --cpu --num_processes 2 train.py", 2),
    ("accelerate launch --num-processes=3 train.py --x 1", 3),
    ("accelerate launch --cpu train.py", None),
    ("accelerate launch --num_processes", None),
])
def test_the_number_is_read_from_the_command_line(words: str, expected: int | None) -> None:
    assert launch._processes_asked_of(words.split()) == expected


def test_an_ordinary_start_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    assert launch.start_missing_processes() is None
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert launch.start_missing_processes() is None
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("RANK", "0")
    assert launch.start_missing_processes() is None


def test_a_wish_that_cannot_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(launch, "_parents_words", lambda: ["accelerate", "launch"])
    with pytest.raises(ConfigError, match="torchrun --nproc_per_node"):
        launch.start_missing_processes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the death of a parent is told by Linux alone")
def test_what_was_started_ends_with_accelerate(tmp_path: Path) -> None:
    script = tmp_path / "wait.py"
    script.write_text("import os, time\n"
                      f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(str(os.getpid()))\n"
                      "time.sleep(60)\n")
    starter = tmp_path / "start.py"
    starter.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom common import launch\n"
                       "launch._parents_words = lambda: ['--num_processes', '2']\n"
                       f"sys.argv = [{str(script)!r}]\nsys.exit(launch.start_missing_processes())\n")
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "-c", "import subprocess, sys; subprocess.run([sys.executable, "
                               f"{str(starter)!r}])"], env=environment)

    def pids() -> list[int]:
        return [int(text) for one in "01" if (tmp_path / one).exists() and (text := (tmp_path / one).read_text())]

    until(lambda: len(pids()) == 2)
    try:
        parent.send_signal(signal.SIGTERM)
        parent.wait()
        until(lambda: not any(psutil.pid_exists(pid) for pid in pids()))
    finally:
        for pid in pids():
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the death of a parent is told by Linux alone")
@pytest.mark.parametrize(("parent", "ends"), [("accelerate", True), ("shell", False)])
def test_a_single_process_ends_with_accelerate_alone(parent: str, ends: bool, tmp_path: Path) -> None:
    started, told = tmp_path / "started.py", tmp_path / "pid"
    started.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom common import launch\n"
                       "assert launch.start_missing_processes() is None\n"
                       f"import os, time\nopen({str(told)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    (tmp_path / parent).write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, {str(started)!r}])\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "MASTER_ADDR")}
    environment["ACCELERATE_MIXED_PRECISION"] = "no"
    above = subprocess.Popen([sys.executable, str(tmp_path / parent)], env=environment)
    until(lambda: told.exists() and bool(told.read_text()))
    below = psutil.Process(int(told.read_text()))
    try:
        above.send_signal(signal.SIGTERM)
        above.wait()
        if ends:
            until(lambda: not below.is_running())
        else:
            with pytest.raises(psutil.TimeoutExpired):
                below.wait(0.5)
    finally:
        if below.is_running():
            below.kill()


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX sends them")
def test_a_process_that_the_system_ended_is_told_and_its_signal_is_the_exit_code(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script = tmp_path / "die.py"
    script.write_text("import os, time\nif os.environ['RANK'] == '1':\n    os.kill(os.getpid(), 9)\ntime.sleep(60)\n")
    assert launch._torchrun(["--standalone", "--nproc_per_node", "2", str(script)]) == 137
    assert "process 1 was ended by SIGKILL, as a system does that has no memory left" in caplog.text
