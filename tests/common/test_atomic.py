"""Atomic writes: whole or absent."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest

from common.atomic import TEMPORARY_SUFFIX, atomic_path, write_text


def leftovers(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if TEMPORARY_SUFFIX in name]


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError("power cut")
    assert target.read_text() == "old"
    assert not leftovers(tmp_path)


def test_temporary_name_keeps_the_suffix_and_the_folder(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "deep" / "clip.mp4") as temporary:
        assert temporary.suffix == ".mp4"
        assert temporary.parent == tmp_path / "deep"
        temporary.write_bytes(b"x")
    assert os.listdir(tmp_path / "deep") == ["clip.mp4"]


def test_names_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("語" * 82 + ".json")
    assert len(target.name.encode()) > 245
    write_text(target, "x")
    assert target.read_text() == "x"


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_mode_is_that_of_an_ordinary_file_or_of_the_file_before(tmp_path: Path) -> None:
    target = tmp_path / "a"
    before = os.umask(0o027)
    try:
        write_text(target, "x")
    finally:
        os.umask(before)
    assert target.stat().st_mode & 0o777 == 0o640
    target.chmod(0o604)
    write_text(target, "y")
    assert target.stat().st_mode & 0o777 == 0o604


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    real = tmp_path / "store" / "real.txt"
    real.write_text("old")
    link = tmp_path / "link.txt"
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_writer_leaves_the_old_or_the_new_file(tmp_path: Path, root: Path) -> None:
    target = tmp_path / "big.txt"
    code = ("import sys; from common.atomic import write_text\n"
            "for n in range(10**6): write_text(sys.argv[1], str(n % 10) * 300_000)")
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", code, str(target)], cwd=root)
        while not target.exists():
            time.sleep(0.01)
        time.sleep(0.03 * attempt)
        process.kill()
        process.wait()
        text = target.read_text()
        assert len(text) == 300_000
        assert len(set(text)) == 1
