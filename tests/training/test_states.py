"""States on the disk: whole, or not there."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest
import torch

from common.errors import ConfigError
from common.tensorfile import save_tensors
from training.keeping.states import (
    clear_newer,
    find_states,
    newest_whole,
    read_state,
    remove_state,
    state_path,
    sweep,
    write_state,
)

NAME = "a name"


def write(folder: Path, step: int, content: bytes = b"weights") -> Path:
    path = state_path(folder, NAME, step)
    write_state(path, {"a.bin": lambda to: to.write_bytes(content) and None}, {"step": step, "run_id": "x"})
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_with_what_was_told_of_it(tmp_path: Path) -> None:
    state = read_state(write(tmp_path, 12))
    assert (state.step, state.facts["run_id"]) == (12, "x")
    assert (state.path / "a.bin").read_bytes() == b"weights"
    assert names(tmp_path) == ["a name-step00000012-state"]


def test_states_are_found_newest_first_and_other_names_are_left_alone(tmp_path: Path) -> None:
    paths = [write(tmp_path, step) for step in (5, 100, 20)]
    (tmp_path / "another-step00000200-state").mkdir()
    (tmp_path / "a name-step00000300-state.damaged-20260101-000000").mkdir()
    assert find_states(tmp_path, NAME) == [paths[1], paths[2], paths[0]]


@pytest.mark.parametrize("spoil", ["cut", "flip", "delete", "no index", "broken index", "older version"])
def test_a_spoilt_newest_state_gives_way_to_the_one_before(tmp_path: Path, spoil: str,
                                                           caplog: pytest.LogCaptureFixture) -> None:
    before, newest = write(tmp_path, 1), write(tmp_path, 2)
    part, index = newest / "a.bin", newest / "state.json"
    if spoil == "cut":
        part.write_bytes(b"weig")
    elif spoil == "flip":
        part.write_bytes(b"weighty")
    elif spoil == "delete":
        part.unlink()
    elif spoil == "no index":
        index.unlink()
    elif spoil == "broken index":
        index.write_text(index.read_text()[:40])
    else:
        index.write_text(json.dumps(json.loads(index.read_text()) | {"schema": 0}))
    found = newest_whole(tmp_path, NAME)
    assert found is not None and found.path == before
    assert ("older version" in caplog.text) == (spoil == "older version") and newest.name in caplog.text
    clear_newer(tmp_path, NAME, found.step)
    [aside] = [path for path in tmp_path.iterdir() if "damaged" in path.name]
    assert aside.name.startswith(newest.name) and newest_whole(tmp_path, NAME) == found


def test_a_state_that_cannot_be_written_leaves_the_one_before_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, 3, b"first")

    def full(to: Path) -> None:
        to.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(to))

    with pytest.raises(OSError, match="No space left"):
        write_state(path, {"a.bin": lambda to: to.write_bytes(b"x") and None, "b.bin": full}, {"step": 3})
    assert names(tmp_path) == [path.name]
    assert (read_state(path).path / "a.bin").read_bytes() == b"first"


def test_a_state_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 3, b"first")
    assert (read_state(write(tmp_path, 3, b"second")).path / "a.bin").read_bytes() == b"second"
    assert len(names(tmp_path)) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from training.keeping.states import state_path, write_state
def part(to):
    to.write_bytes(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)
write_state(state_path(Path(sys.argv[1]), "a name", 9), {"a.bin": part}, {"step": 9})
"""


@pytest.mark.skipif(os.name == "nt", reason="signal 9 is a POSIX matter")
def test_a_killed_writer_leaves_no_state_and_its_rest_is_swept(tmp_path: Path, root: Path) -> None:
    before = write(tmp_path, 8)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, check=False)
    assert len(names(tmp_path)) == 2 and find_states(tmp_path, NAME) == [before]
    assert len(sweep(tmp_path)) == 1 and names(tmp_path) == [before.name]


def test_what_a_living_process_writes_is_not_swept(tmp_path: Path) -> None:
    other = tmp_path / f".x.{os.getppid()}.0123abcd.tmp.json"
    other.write_text("{}")
    (tmp_path / ".gitignore").write_text("")
    assert sweep(tmp_path) == [] and other.exists()


def test_a_removed_state_is_gone(tmp_path: Path) -> None:
    remove_state(write(tmp_path, 1))
    assert names(tmp_path) == []


def test_what_is_no_state_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        read_state(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no state.json, which is written last"):
        read_state(tmp_path / "empty")


def test_a_process_that_is_killed_while_saving_leaves_only_names_that_are_swept(tmp_path: Path) -> None:
    script = ("import os, sys\nfrom pathlib import Path\nimport safetensors.torch\nimport torch\n"
              "from common.tensorfile import save_tensors\n"
              "def killed(tensors, path, metadata):\n"
              "    (Path(path).parent / '.tmpVr1Ky8').write_bytes(b'half')  # as safetensors does\n"
              "    os._exit(9)\n"
              "safetensors.torch.save_file = killed\n"
              "save_tensors(sys.argv[1], {'a': torch.zeros(1)}, {})\n")
    target = tmp_path / "t.safetensors"
    result = subprocess.run([sys.executable, "-c", script, str(target)], cwd=Path(__file__).parents[2], check=False)
    assert result.returncode == 9 and list(tmp_path.iterdir())
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())
    save_tensors(target, {"a": torch.zeros(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]
