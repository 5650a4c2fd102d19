"""Whole runs of the trainer on the tiny weights: their datasets, settings and figures."""

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

from precompute import ModelFiles, run
from tests.demo_clips import copy_clips, write_toml
from training.config import TrainConfig

CLIPS = 5


def prepare_data(folder: Path, root: Path, weights: Path, features: Sequence[str], *, given: Any = "first",
                 more: str = "", frames: int = 9) -> Path:
    """Five of the demo's clips, and the datasets of the TOML text `more`, with the named features cached."""
    copy_clips(root, folder / "clips", range(CLIPS))
    data = write_toml(folder, "batch1.toml", frames=frames)
    data.write_text(data.read_text(encoding="utf-8") + more, encoding="utf-8")
    models = ModelFiles(vae=weights / "Wan2.1_VAE.pth", t5=weights / "models_t5_umt5-xxl-enc-bf16.pth",
                        clip=weights / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
                        wav2vec=weights / "wav2vec2-base-960h", given=given)
    assert not run(list(features), data, models=models).failed
    return data


def settings(data: Path, weights: Path, out: Path, **more: Any) -> TrainConfig:
    """Five steps of a small LoRA; `more` are flags."""
    return TrainConfig.from_flags(**{
        "dataset_config": data, "dit": weights / "wan2.1_t2v_tiny.safetensors", "output_dir": out, "output_name": "t",
        "learning_rate": 1e-3, "max_train_steps": 5, "seed": 7, "network_dim": 4, "network_alpha": 4,
        "timestep_sampling": "shift", "discrete_flow_shift": 3, "max_data_loader_n_workers": 1, **more})


def losses(out: Path) -> list[float]:
    """Training losses that a run wrote down."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def validations(out: Path) -> list[dict[str, Any]]:
    """Validation lines that a run wrote down."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.get("event") == "validation"]
