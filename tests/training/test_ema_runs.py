"""Runs that save an average of their weights."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
import torch

from common.errors import ConfigError
from networks.ema import decay_at
from tests.training.runs import losses, settings, validations
from training import train


def test_the_average_is_saved_and_measured_and_learning_stays_the_same(talking: Path, weights: Path, tmp_path: Path
                                                                       ) -> None:
    more = {"max_train_steps": 3, "validation_count": 1, "validate_every_n_steps": 1, "validation_sigmas": [0.5],
            "save_every_n_steps": 1}
    train(settings(talking, weights, tmp_path / "plain", **more))
    final = train(settings(talking, weights, tmp_path / "ema", ema_decay=0.9, **more))
    plain, averaged = tmp_path / "plain", tmp_path / "ema"
    assert losses(plain) == losses(averaged)
    last, raw = load_file(plain / "t.safetensors"), load_file(averaged / "t-raw.safetensors")
    assert all(torch.equal(last[key], raw[key]) for key in last)
    assert not (plain / "t-raw.safetensors").exists()

    key = "lora_unet_blocks_0_ffn_0.lora_up.weight"
    expected = torch.zeros_like(last[key])  # `up` begins at zero
    for step in (1, 2, 3):
        weight = load_file(plain / f"t-step{step:08d}.safetensors")[key]
        expected = torch.lerp(expected, weight, 1 - decay_at(step, 0.9))
        assert torch.allclose(load_file(averaged / f"t-step{step:08d}.safetensors")[key], expected, atol=1e-9)
    assert torch.allclose(load_file(final or "")[key], expected, atol=1e-9)

    measured = [[one["held_out_loss"] for one in validations(folder)] for folder in (plain, averaged)]
    assert measured[0][0] == measured[1][0], "before the first step both are the same network"
    assert measured[0][-1] != measured[1][-1]
    with safe_open(averaged / "t.safetensors", "pt") as file:
        assert json.loads(file.metadata()["omnituner.ema_decay"]) == 0.9
    with safe_open(averaged / "t-raw.safetensors", "pt") as file:
        assert "omnituner.ema_decay" not in file.metadata()


def test_two_kinds_of_averages_are_refused(talking: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="averages its weights itself"):
        train(settings(talking, weights, tmp_path, ema_decay=0.9, optimizer_type="AdamWScheduleFree"))
