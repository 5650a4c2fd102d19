"""Processes that accelerate leaves out on a CPU."""

import pytest

from common import launch
from common.errors import ConfigError


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
