"""Starts in a folder where a run has been: what they take, what they leave alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
import torch

from common.config import parse
from common.errors import ConfigError
from tests.training.runs import settings, validations
from training import train
from training.config import TrainConfig
from training.signals import Interrupted


def rates(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["lr"]["lora"] for line in lines if "loss" in line]


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
            for path in folder.rglob("*") if path.is_file()}


def test_a_longer_run_follows_the_new_course_from_its_first_step(talking: Path, weights: Path, tmp_path: Path) -> None:
    more = {"lr_scheduler": "cosine"}
    train(settings(talking, weights, tmp_path / "a", max_train_steps=6, **more))
    train(settings(talking, weights, tmp_path / "b", max_train_steps=3, **more))
    train(settings(talking, weights, tmp_path / "b", max_train_steps=6, **more))
    assert rates(tmp_path / "b")[3:] == rates(tmp_path / "a")[3:]


def test_the_average_of_a_run_that_takes_weights_begins_with_them(talking: Path, weights: Path, tmp_path: Path) -> None:
    more = {"ema_decay": 0.9, "max_train_steps": 2, "validation_count": 1, "learning_rate": 1e-2}
    train(settings(talking, weights, tmp_path, **more))
    taken = load_file(tmp_path / "t-step00000002-state" / "network.safetensors")
    train(settings(talking, weights, tmp_path, resume_weights_only=True, save_at_first=True, **more))
    begun = load_file(tmp_path / "t-step00000000.safetensors")
    assert all(torch.equal(taken[key], begun[key]) for key in taken)
    start = [one["held_out_loss"] for one in validations(tmp_path) if one["step"] == 0]
    assert start[0] != start[1]


def test_weights_of_a_state_elsewhere_are_not_those_of_its_namesake_here(talking: Path, weights: Path,
                                                                         tmp_path: Path) -> None:
    for name, rate in (("there", 1e-2), ("here", 1e-3)):
        train(settings(talking, weights, tmp_path / name, max_train_steps=2, learning_rate=rate))
    named = tmp_path / "there" / "t-step00000002-state"
    train(settings(talking, weights, tmp_path / "here", resume=str(named), resume_weights_only=True, save_at_first=True,
                   max_train_steps=1))
    begun, wanted = (load_file(path) for path in (tmp_path / "here" / "t-step00000000.safetensors",
                                                  named / "network.safetensors"))
    assert all(torch.equal(begun[key], wanted[key]) for key in wanted)


def test_states_of_another_run_are_no_fallback_for_one_that_comes_from_elsewhere(talking: Path, weights: Path,
                                                                                tmp_path: Path) -> None:
    train(settings(talking, weights, tmp_path / "here", max_train_steps=1))
    train(settings(talking, weights, tmp_path / "there", max_train_steps=2))
    train(settings(talking, weights, tmp_path / "here", resume=str(tmp_path / "there" / "t-step00000002-state"),
                   max_train_steps=3))
    assert [path.name for path in (tmp_path / "here").glob("*-state")] == ["t-step00000003-state"]
    assert len([*(tmp_path / "here").glob("t-step00000001-state.left-*")]) == 1


def test_the_settings_file_goes_on_with_a_run_that_was_forced(talking: Path, weights: Path, tmp_path: Path) -> None:
    train(settings(talking, weights, tmp_path, max_train_steps=1))
    (tmp_path / "save_quit").write_text("")
    with pytest.raises(Interrupted):
        train(settings(talking, weights, tmp_path, max_train_steps=3, force=True))
    file = tmp_path / "settings.toml"
    train(parse(TrainConfig, ["--config_file", str(file)], prog="train_network.py", description=""))
    assert json.loads((tmp_path / "training_state.json").read_text())["starts"] == 2
    assert len([*tmp_path.glob("t-before-*")]) == 1


@pytest.mark.parametrize("more", [{"dry_run": True, "max_train_steps": 9}, {"dry_run": True},
                                  {"show_timesteps": "console"}], ids=["longer", "done", "timesteps"])
def test_looks_change_nothing_in_the_folder_of_a_run(talking: Path, weights: Path, tmp_path: Path, more: dict[str, Any],
                                                     caplog: pytest.LogCaptureFixture) -> None:
    train(settings(talking, weights, tmp_path, max_train_steps=1))
    (tmp_path / "training_state.json").write_text("{torn", encoding="utf-8")
    before = listing(tmp_path)
    with caplog.at_level("INFO"):
        train(settings(talking, weights, tmp_path, **{"max_train_steps": 1, **more}))
    assert listing(tmp_path) == before
    assert ("noise levels of 'shift'" in caplog.text) == ("show_timesteps" in more)


def test_a_setting_that_the_run_was_too_old_to_know_counts_as_its_default(talking: Path, weights: Path, tmp_path: Path
                                                                          ) -> None:
    train(settings(talking, weights, tmp_path, max_train_steps=1))
    index = tmp_path / "t-step00000001-state" / "state.json"
    facts = json.loads(index.read_text(encoding="utf-8"))
    del facts["settings"]["ema_decay"]
    index.write_text(json.dumps(facts), encoding="utf-8")
    with pytest.raises(ConfigError, match="--ema_decay was 0.0, is 0.9"):
        train(settings(talking, weights, tmp_path, max_train_steps=2, ema_decay=0.9))
    train(settings(talking, weights, tmp_path, max_train_steps=2))


def test_previews_of_the_run_before_go_with_it_and_rests_of_killed_ones_are_swept(talking: Path, weights: Path,
                                                                                 tmp_path: Path) -> None:
    sample = tmp_path / "sample"
    (sample / "held_out").mkdir(parents=True)
    rests = [sample / ".t_step00000001_00.999999999.0a0a0a0a.tmp.mp4",
             sample / "held_out" / ".a.999999999.0b0b0b0b.tmp"]
    for path in (*rests, sample / "t_step00000900_00.mp4", sample / "other_step00000900_00.mp4"):
        path.write_bytes(b"x")
    train(settings(talking, weights, tmp_path, max_train_steps=1, force=True))
    [before] = tmp_path.glob("t-before-*")
    assert sorted(path.name for path in (before / "sample").iterdir()) == ["index.html", "t_step00000900_00.mp4"]
    assert [path.name for path in sample.rglob("*") if path.is_file()] == ["other_step00000900_00.mp4"]


def test_a_run_told_in_epochs_can_be_made_longer_in_steps(talking: Path, weights: Path, tmp_path: Path) -> None:
    epochs = settings(talking, weights, tmp_path, max_train_epochs=1)
    train(epochs)
    train(settings(talking, weights, tmp_path, max_train_steps=6))
    assert len(rates(tmp_path)) == 6
