"""Whole runs of the trainer on the tiny weights: their datasets, settings and figures."""

from collections.abc import Sequence
import json
from pathlib import Path
import shutil
from typing import Any

from precompute import ModelFiles, run
from training.config import TrainConfig

TOML = """
[general]
resolution = [32, 32]
caption_extension = ".txt"
batch_size = {batch}
[[datasets]]
video_directory = "{folder}/clips"
cache_directory = "{folder}/cache"
audio = "clip"
target_fps = 25
target_frames = [9]
"""
CLIPS = 5


def prepare_data(folder: Path, root: Path, weights: Path, features: Sequence[str], *, given: Any = "first",
                 more: str = "", frames: int = 9) -> Path:
    """Five of the demo's clips, and the datasets of the TOML text `more`, with the named features cached."""
    (folder / "clips").mkdir()
    for i in range(CLIPS):
        for suffix in (".mp4", ".txt"):
            shutil.copy(root / "examples" / "demo" / "clips" / f"head_{i:03d}{suffix}", folder / "clips")
    data = write_toml(folder, 1)
    text = data.read_text(encoding="utf-8").replace("target_frames = [9]", f"target_frames = [{frames}]")
    data.write_text(text + more, encoding="utf-8")
    models = ModelFiles(vae=weights / "Wan2.1_VAE.pth", t5=weights / "models_t5_umt5-xxl-enc-bf16.pth",
                        clip=weights / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
                        wav2vec=weights / "wav2vec2-base-960h", given=given)
    assert not run(list(features), data, models=models).failed
    return data


def write_toml(folder: Path, batch: int) -> Path:
    """The dataset file of the clips in `folder`."""
    path = folder / f"batch{batch}.toml"
    path.write_text(TOML.format(folder=folder.as_posix(), batch=batch), encoding="utf-8")
    return path


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
