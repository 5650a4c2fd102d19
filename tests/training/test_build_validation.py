"""Validation end to end on the tiny weights."""

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
import torch

from common.errors import ConfigError
from tests.training.runs import losses, prepare_data, settings, validations
from training import train


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory, root: Path, weights: Path) -> Path:
    """Dataset of clips long enough to compare sounds on."""
    return prepare_data(tmp_path_factory.mktemp("longer"), root, weights, ["latents", "text", "audio"], frames=21)


def test_held_out_clips_are_measured_and_the_run_is_the_one_without_them(longer: Path, weights: Path, tmp_path: Path,
                                                                        caplog: pytest.LogCaptureFixture) -> None:
    more: dict[str, Any] = {"network_args": ["conditions=omniavatar_add"], "network_dropout": 0.2,
                            "learning_rate": 1e-2, "validation_split": 0.4, "max_train_steps": 6}
    with caplog.at_level("INFO"):
        often = train(settings(longer, weights, tmp_path / "often", validate_every_n_steps=2, **more))
    found = validations(tmp_path / "often")
    assert [one["step"] for one in found] == [0, 2, 4, 6]
    assert all(one["clips"] == one["clips_compared"] == 2 for one in found)
    assert found[0]["audio_gap"] == found[0]["null_gap"] == 0 and found[-1]["audio_gap"] != 0
    assert "held out, never trained on: 2 media files (clips: 2): head_00" in caplog.text
    assert "step 0: held-out loss " in caplog.text and "audio gap +0 (shifted ±5 frames)" in caplog.text
    assert "clips: 3; an epoch: 3 samples" in caplog.text
    assert (tmp_path / "often" / "loss_history.png").is_file()
    rarely = train(settings(longer, weights, tmp_path / "rarely", **more))
    assert [one["step"] for one in validations(tmp_path / "rarely")] == [0, 6]
    first, second = load_file(often or ""), load_file(rarely or "")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert losses(tmp_path / "often") == losses(tmp_path / "rarely")
    assert [level["sigma"] for level in found[-1]["by_sigma"]] == [0.3, 0.5, 0.7, 0.9]
    last = found[-1]["held_out_loss"]
    assert [one["held_out_loss"] for one in validations(tmp_path / "rarely")] == [found[0]["held_out_loss"], last]


def test_clips_too_short_for_the_gap_are_told(talking: Path, weights: Path, tmp_path: Path,
                                              caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        train(settings(talking, weights, tmp_path, validation_count=1, network_args=["conditions=omniavatar_add"]))
    assert "no audio gap (1 clip shorter than 17 frames)" in caplog.text
    assert all(one["audio_gap"] is None and one["held_out_loss"] > 0 for one in validations(tmp_path))


@pytest.mark.slow
def test_a_run_that_gets_worse_is_stopped_with_its_files_its_best_and_its_page(
        longer: Path, weights: Path, tmp_path: Path) -> None:
    """The held-out loss falls at first; a rate that is far too high spoils it after that."""
    final = train(settings(longer, weights, tmp_path, validation_items=["head_000.mp4", "head_001.mp4"],
                           max_train_steps=60, validate_every_n_steps=2, early_stopping_patience_evals=2,
                           validation_sigmas=[0.5],
                           learning_rate=2e-2, lr_scheduler="piecewise_constant", save_every_n_steps=2,
                           save_last_n_steps=1, lr_scheduler_args=["step_rules=0.05:4,50"]))
    found = validations(tmp_path)
    steps, losses_ = [one["step"] for one in found], [one["held_out_loss"] for one in found]
    best = min(range(len(found)), key=losses_.__getitem__)
    assert steps[-1] == steps[best] + 4 < 60 and best > 0, "two measurements without improvement"
    assert final is not None and final.is_file() and len(losses(tmp_path)) == steps[-1]
    with safe_open(tmp_path / "t-best.safetensors", "pt") as file:
        assert file.metadata()["ss_steps"] == str(steps[best])
    page = (tmp_path / "run_summary.md").read_text(encoding="utf-8")
    assert f"Finished at step {steps[-1]} of 60, before the last one: early stopping" in page
    assert f"`t-best.safetensors`: step {steps[best]}, held-out loss {losses_[best]:.4f}" in page
    assert "3 trained on, 2 held out (media files: 2)" in page and "timesteps.png" in page
    assert f'--lora_weight "{final}"' in page


def test_a_gap_that_nothing_hears_cannot_stop_a_run(longer: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a condition that hears"):
        train(settings(longer, weights, tmp_path, validation_count=1, early_stopping_metric="audio_gap"))
