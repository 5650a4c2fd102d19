"""Precision, seed and processes of a run."""

from typing import Any

import pytest
import torch

from common.config import to_toml
from common.errors import ConfigError
from training.config import LoggingSection, SpeedSection, TrainConfig
from training.launch import base_dtype, make_accelerator, refuse_differences, with_seed
from training.parallel import Processes

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
