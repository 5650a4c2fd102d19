"""How a script ends on an error."""

import errno
import os
from pathlib import Path
import subprocess
import sys

import pytest

from common import errors
from common.errors import UserError, run


def fail() -> None:
    raise UserError("clip_0031: 80 frames; Wan needs 4n+1.")


def interrupt() -> None:
    raise KeyboardInterrupt


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.mp4")


@pytest.fixture
def second_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take this for process 1 of a launch."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(errors, "WAIT_FOR_LAUNCHER_S", 0.0)


def test_a_users_mistake_ends_with_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        run(fail)
    assert ending.value.code == 1
    assert capsys.readouterr().err == "error: clip_0031: 80 frames; Wan needs 4n+1.\n"


def test_a_full_disk_is_told_with_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        run(fill_the_disk)
    assert ending.value.code == 1
    assert "error: no space left while writing a.mp4" in capsys.readouterr().err


@pytest.mark.usefixtures("second_process")
def test_ctrl_c_is_told_by_the_first_process_only(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        run(interrupt)
    assert ending.value.code == 130
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("second_process")
def test_an_error_of_another_process_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(fail)
    assert capsys.readouterr().err.startswith("error: process 1: clip_0031")


@pytest.mark.slow
def test_an_error_of_two_processes_is_told_once(root: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([*launch, "cache_latents.py", "--vea", "x"], cwd=root, capture_output=True, text=True)
    assert result.returncode != 0
    assert result.stderr.count("unknown flag --vea") == 1
