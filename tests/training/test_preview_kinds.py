"""Previews of other models, precisions and lengths equal generate_video.py too."""

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from common.config import parse
from common.media.sound import read_sound
from common.media.video import read_frames
from inference import generate
from inference.request import GenerationRequest
from tests.training.preview_runs import config_of, models, write_prompts
from tests.training.runs import prepare_data, settings
from training import train
from training.config import TrainConfig
import training.looking.preview_plan
import training.looking.previews


def made_twice(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Frames of the run's last preview, and of what its record makes, before any codec."""
    results = []
    write = training.looking.previews.write_preview

    def remember(video: Path, *others: Any) -> list[Path]:
        results.append((video, others[0]))
        return write(video, *others)

    monkeypatch.setattr(training.looking.previews, "write_preview", remember)
    train(config)
    video, result = results[-1]
    record = ["--config_file", str(video.with_suffix(".json"))]
    again = generate(parse(GenerationRequest, record, prog="generate_video.py", description=""))
    assert len(read_frames(video, fps=result.fps)) == result.video.shape[1]
    assert again.video is not None
    return result.video, again.video


@pytest.mark.slow
def test_bfloat16_with_float8_blocks(talking: Path, weights: Path, root: Path, tmp_path: Path,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(talking, weights, tmp_path / "out", write_prompts(tmp_path, root), mixed_precision="bf16",
                       fp8_base=True, gradient_checkpointing=True, max_train_steps=3)
    assert torch.equal(*made_twice(config, monkeypatch))


@pytest.mark.slow
def test_a_sound_of_several_chunks(talking: Path, weights: Path, root: Path, tmp_path: Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = write_prompts(tmp_path, root)
    sound = read_sound(root / "examples" / "demo" / "clips" / "head_007.mp4")
    soundfile.write(tmp_path / "long.wav", sound.samples.T[:sound.sample_rate * 17 // 25], sound.sample_rate)
    prompts.write_text("a head --i face.png --a long.wav --w 32 --h 32 --s 2 --l 1\n", encoding="utf-8")
    base = training.looking.preview_plan.base_request

    def in_chunks(*arguments: Any) -> GenerationRequest:
        return base(*arguments).model_copy(update={"chunk_frames": 9, "overlap_frame": 5})

    monkeypatch.setattr(training.looking.preview_plan, "base_request", in_chunks)
    made, again = made_twice(config_of(talking, weights, tmp_path / "out", prompts, max_train_steps=1), monkeypatch)
    assert made.shape[1] == 17 and torch.equal(made, again)
    assert not list((tmp_path / "out" / "sample").glob("*.parts"))


@pytest.mark.slow
def test_image_to_video_looks_through_clip(weights: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                                           ) -> None:
    (tmp_path / "data").mkdir()
    data = prepare_data(tmp_path / "data", root, weights, ["latents", "text", "image_latents", "clip"], frames=5)
    clip = {"clip": weights / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"}
    config = settings(data, weights, tmp_path / "out", task="i2v-14B", dit=weights / "wan2.1_i2v_tiny.safetensors",
                      sample_held_out=1, validation_count=1, sample_infer_steps=2, max_train_steps=1, **models(weights),
                      **clip)
    assert torch.equal(*made_twice(config, monkeypatch))
