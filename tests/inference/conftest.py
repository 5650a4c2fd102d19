"""Requests on the tiny weights, and a LoRA file with an audio condition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from inference.request import GenerationRequest

AUDIO_RATE = 22050


@pytest.fixture(scope="session")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture of 90x70 pixels with a gradient, so that turning or stretching it shows."""
    from PIL import Image

    rows, columns = np.mgrid[0:70, 0:90]
    picture = np.stack([rows * 3, columns * 2, (rows + columns) % 256], axis=-1).astype(np.uint8)
    path = tmp_path_factory.mktemp("media") / "face.png"
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.5 s of stereo sound at 22.05 kHz whose beginning and end are loud."""
    time = np.arange(AUDIO_RATE // 2) / AUDIO_RATE
    left = 0.5 * np.sin(2 * np.pi * 220 * time) * (0.5 + 0.5 * np.cos(2 * np.pi * 4 * time))
    path = tmp_path_factory.mktemp("media") / "speech.wav"
    soundfile.write(path, np.stack([left, 0.5 * left], axis=1), AUDIO_RATE)
    return path


@pytest.fixture(scope="session")
def audio_lora(tmp_path_factory: pytest.TempPathFactory, tiny_weights: Path) -> Path:
    """A LoRA with an audio condition for the tiny text-to-video model, with weights as if it had been trained."""
    from common.tensorfile import save_tensors
    from networks.condition_weights import condition_tensors
    from networks.lora_wan import create_network
    from networks.metadata import Origin
    import wan
    from wan.conditions.registry import build_condition

    dit = wan.load_dit(tiny_weights / "wan2.1_t2v_tiny.safetensors")
    settings = {"audio_states": "3", "audio_width": str(audio_width(tiny_weights))}
    condition = build_condition("omniavatar_add", settings, dit.variant)
    network = create_network(dit, dim=2, alpha=2.0)
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in (condition, network):
            for parameter in module.parameters():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=source))
    origin = Origin(task="t2v-1.3B", conditions={"omniavatar_add": condition.settings_text()}, fps=25.0,
                    picture_mode="cover")
    path = tmp_path_factory.mktemp("lora") / "talking.safetensors"
    save_tensors(path, network.state() | condition_tensors({"omniavatar_add": condition}), origin.text())
    return path


def audio_width(tiny_weights: Path) -> int:
    """Hidden size of the tiny audio encoder."""
    import json

    config = json.loads((tiny_weights / "wav2vec2-base-960h" / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 2
    return config["hidden_size"]


Ask = Callable[..., GenerationRequest]


@pytest.fixture
def ask(tiny_weights: Path) -> Ask:
    """Makes a request on the tiny weights: ``ask("t2v", prompt="x", video_length=5)``."""
    def make(family: str = "t2v", **settings: Any) -> GenerationRequest:
        values: dict[str, Any] = {
            "dit": tiny_weights / f"wan2.1_{family}_tiny.safetensors", "vae": tiny_weights / "Wan2.1_VAE.pth",
            "t5": tiny_weights / "models_t5_umt5-xxl-enc-bf16.pth", "device": "cpu", "prompt": "a person speaks",
            "video_size": (32, 48), "infer_steps": 2, "seed": 3, "t5_dtype": "float32"}
        if family in ("i2v", "flf2v"):
            values["clip"] = tiny_weights / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
        return GenerationRequest(**{**values, **settings})
    return make


@pytest.fixture
def ask_talking(ask: Ask, tiny_weights: Path, audio_lora: Path, face: Path, speech: Path) -> Ask:
    """Makes an audio-driven request."""
    def make(**settings: Any) -> GenerationRequest:
        values = {"wav2vec": tiny_weights / "wav2vec2-base-960h", "lora_weight": [audio_lora], "image_path": face,
                  "audio": speech}
        return ask("t2v", **{**values, **settings})
    return make
