"""Trackers: what they are told, and that their failures do not stop a run."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from training.callbacks import AudioGap, LevelFigures, Outcome, StepReport, ValidationReport
from training.config import LoggingSection, TrainConfig
from training.telling.trackers import Trackers, log_folder, plain_settings, tracker_names

REPORT = StepReport(step=1, epoch=1, loss=0.5, average_loss=0.5, grad_norm=1.0, learning_rates={"lora": 1e-4},
                    seconds=0.1, samples=1)


def config(**more: Any) -> TrainConfig:
    return TrainConfig.from_flags(dataset_config="d.toml", dit="/secret/dit.safetensors", output_dir="/out", **more)


def test_settings_for_trackers_hold_no_paths_and_no_secrets() -> None:
    plain = plain_settings(config(wandb_api_key="hush", network_args=["a=1"], base_weights=["/secret/x"]))
    assert plain["network_args"] == "['a=1']" and plain["learning_rate"] == 2e-6
    assert "dit" not in plain and not any("secret" in str(value) or "hush" in str(value) for value in plain.values())
    assert all(isinstance(value, (bool, int, float, str)) for value in plain.values())


def test_tensorboard_follows_from_a_log_folder(tmp_path: Path) -> None:
    assert tracker_names(LoggingSection()) == []
    assert tracker_names(LoggingSection(logging_dir=tmp_path)) == ["tensorboard"]
    folder = log_folder(LoggingSection(logging_dir=tmp_path, log_prefix="p-"))
    assert folder is not None and folder.parent == tmp_path and folder.name.startswith("p-20")


def test_a_tracker_that_fails_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[str] = []

    def fail(*args: Any, **kwargs: Any) -> None:
        calls.append("init")
        raise RuntimeError("no network")

    accelerator = SimpleNamespace(log_with=["wandb"], init_trackers=fail, log=lambda *a, **k: calls.append("log"),
                                  trackers=[SimpleNamespace(finish=lambda: calls.append("end"))])
    trackers = Trackers(accelerator, LoggingSection(), {})
    run: Any = None
    trackers.on_start(run)
    trackers.on_step(run, REPORT)
    trackers.on_end(run, Outcome.FINISHED)
    assert calls == ["init"]
    assert "could not start (RuntimeError: no network)" in caplog.text


def test_held_out_figures_go_to_the_trackers_under_kohyas_heading() -> None:
    told: list[tuple[dict[str, float], int]] = []
    accelerator = SimpleNamespace(log_with=["wandb"], init_trackers=lambda *a, **k: None,
                                  log=lambda values, step: told.append((values, step)))
    trackers = Trackers(accelerator, LoggingSection(), {})
    run: Any = None
    trackers.on_start(run)
    audio = AudioGap(right=1.0, late=1.5, early=1.25, silent=2.0, clips=3, shift_frames=5)
    trackers.on_validation(run, ValidationReport(40, 2, 0.75, 3, audio, "", 0.1))
    trackers.on_validation(run, ValidationReport(80, 4, 0.5, 3, None, "", 0.1))
    levels = (LevelFigures(0.3, 0.25, 0.125), LevelFigures(0.95, 0.75))
    trackers.on_validation(run, ValidationReport(90, 4, 0.5, 3, None, "", 0.1, levels))
    assert told.pop() == ({"loss/validation/average": 0.5, "loss/validation/sigma_0.3": 0.25,
                           "loss/validation/audio_gap_sigma_0.3": 0.125, "loss/validation/sigma_0.95": 0.75}, 90)
    assert told == [({"loss/validation/average": 0.75, "loss/validation/audio_gap": 0.375,
                      "loss/validation/null_gap": 1.0}, 40), ({"loss/validation/average": 0.5}, 80)]


def test_tensorboard_files_are_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from accelerate import Accelerator

    settings = LoggingSection(logging_dir=tmp_path, log_config=True)
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(log_folder(settings)))
    trackers = Trackers(accelerator, settings, plain_settings(config()))
    run: Any = None
    trackers.on_start(run)
    trackers.on_step(run, REPORT)
    trackers.on_end(run, Outcome.FINISHED)
    assert list(tmp_path.rglob("events.out.tfevents*"))
