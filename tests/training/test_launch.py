"""Precision, seed and processes of a run."""

import importlib
from pathlib import Path
import socket
import sys
from typing import Any

import pytest
import torch

from common.config import to_toml
from common.errors import ConfigError
from training.config import LoggingSection, SpeedSection, TrainConfig
from training.launch import base_dtype, make_accelerator, processes_of, refuse_differences, together, with_seed
from training.processes import Processes

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("flag", "told", "device", "expected"), [
    (None, None, CPU, torch.float32),
    ("bf16", None, CPU, torch.bfloat16),
    (None, "bf16", CPU, torch.bfloat16),
    ("no", "bf16", CPU, torch.float32),
    (None, "no", CPU, torch.float32),
])
def test_precision_follows_flag_then_launch_then_device(flag: str | None, told: str | None, device: torch.device,
                                                        expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if told is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", told)
    assert base_dtype(SpeedSection(mixed_precision=flag), device) == expected


def test_fp16_is_refused_from_the_launch_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ConfigError, match="fp16 is not offered"):
        base_dtype(SpeedSection(), CPU)


def test_a_random_seed_is_kept_in_the_settings() -> None:
    config = TrainConfig.from_flags(dataset_config="d.toml", dit="x", output_dir="o")
    seeded = with_seed(config, Processes())
    assert isinstance(seeded.length.seed, int) and f"seed = {seeded.length.seed}" in to_toml(seeded)
    assert with_seed(seeded, Processes()) == seeded


@pytest.mark.parametrize("name", ["DeepSpeed", "FSDP"])
def test_deepspeed_and_fsdp_are_left_out_with_a_reason(name: str, monkeypatch: pytest.MonkeyPatch,
                                                       caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    assert make_accelerator(LoggingSection()).num_processes == 1
    assert f"accelerate is set up for {name}; training goes on without it" in caplog.text


class Two(Processes):
    """Two processes of which the other one answers `other`."""

    def gather(self, value: Any) -> list[Any]:
        return [value, {**value, "clips": "other"}]


def test_processes_with_other_files_are_refused() -> None:
    with pytest.raises(ConfigError, match="the clips of process 1 differ from those of process 0"):
        refuse_differences(Two(), {"initial weights": "a", "clips": "b"})
    refuse_differences(Processes(), {"initial weights": "a", "clips": "b"})


def part(rank: int, folder: str, port: int, fails: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1",
                            "MASTER_PORT": port}.items():
            patch.setenv(name, str(value))
        processes = processes_of(make_accelerator(LoggingSection()))
        try:
            with together(processes):
                importlib.import_module("torch._dynamo")  # as a first step does; it imports torch.distributed.nn

                assert processes.gather(rank) == [0, 1] and gloo_threads()
                if fails:
                    raise ConfigError("what all of them meet")
        except ConfigError:
            assert fails
    Path(folder, f"{rank}.txt").write_text(str(gloo_threads()))


def gloo_threads() -> list[str]:
    names = [(task / "comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return [name for name in names if "gloo" in name]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the names of threads are read as Linux tells them")
@pytest.mark.parametrize("fails", [False, True], ids=["done", "error"])
def test_no_thread_of_a_group_outlives_the_work_of_its_processes(tmp_path: Path, fails: bool) -> None:
    # The interpreter's end would race with them: "terminate called without an active exception", exit code -6.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(part, (str(tmp_path), port, fails), nprocs=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["[]", "[]"]
