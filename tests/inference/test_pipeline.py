"""A pipeline that stays loaded, borrowed models, Fun-Control, and the note on other encoders."""

from dataclasses import replace

import numpy as np
from PIL import Image
import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError
from common.tensorfile import save_tensors
from inference import generate, load_pipeline
import wan


def test_a_loaded_pipeline_gives_what_a_fresh_one_gives(ask):
    pipeline = load_pipeline(ask(video_length=5))
    first = pipeline.generate(ask(video_length=5, seed=1))
    pipeline.generate(ask(video_length=1, seed=2, prompt="something else", guidance_scale=1.0))
    again = pipeline.generate(ask(video_length=5, seed=1))
    assert torch.equal(first.video, again.video)
    assert torch.equal(first.video, generate(ask(video_length=5, seed=1)).video)


def test_models_of_a_caller_are_used_and_never_freed(ask, tiny_weights):
    """A trainer's previews bring the DiT that is being trained, and prepare their inputs before."""
    dit = wan.load_dit(tiny_weights / "wan2.1_t2v_tiny.safetensors")
    pipeline = load_pipeline(ask(video_length=5), dit=dit, conditions={})
    prepared = pipeline.prepare(pipeline.plan(ask(video_length=5)))
    pipeline.models.free("text_encoder", "dit")
    before = pipeline.sample(prepared)
    with torch.no_grad():
        dit.blocks[0].self_attn.o.weight.mul_(1.5)
    after = pipeline.sample(prepared)
    assert not torch.equal(before, after)
    assert pipeline.finish(prepared, after).video.shape == (3, 5, 32, 48)


def control_video(folder, level: int):
    folder.mkdir()
    for number in range(5):
        picture = np.full((40, 60, 3), level, np.uint8)
        picture[:, 10 * number:10 * number + 10] = 255 - level
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


def test_a_control_video_is_followed_with_and_without_a_picture(ask, control_dit, tiny_weights, face, tmp_path):
    dark, bright = control_video(tmp_path / "dark", 10), control_video(tmp_path / "bright", 240)
    clip = tiny_weights / "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
    settings = {"dit": control_dit, "video_length": 5, "guidance_scale": 1.0, "infer_steps": 1}
    one, other = (generate(ask(**settings, control_path=path)).latents for path in (dark, bright))
    pictured = generate(ask(**settings, control_path=dark, image_path=face, clip=clip, video_size=(48, 48))).latents
    assert not torch.allclose(one, other, atol=1e-3)
    assert pictured.shape == (16, 2, 4, 6)  # the picture's shape at the area of 48x48
    with pytest.raises(ConfigError, match="has 5 frames.*--video_length 5"):
        generate(ask(**{**settings, "video_length": 9}, control_path=dark))
    with pytest.raises(ConfigError, match="--control_path is required"):
        generate(ask(**settings))


def test_another_encoder_than_in_training_is_told_once(ask_talking, audio_lora, tiny_weights, tmp_path, caplog):
    from common.fingerprint import weights_fingerprint
    from networks.formats import read_lora
    from networks.metadata import Origin

    origin = Origin.read(read_lora(audio_lora).metadata)
    own = weights_fingerprint([tiny_weights / "models_t5_umt5-xxl-enc-bf16.pth"])
    encoders = {"text": {"fingerprint": own}, "audio": {"fingerprint": "of another model"}}
    path = tmp_path / "talking.safetensors"
    save_tensors(path, load_file(audio_lora), replace(origin, encoders=encoders).text())
    with caplog.at_level("WARNING"):
        generate(ask_talking(lora_weight=[path], video_length=1))
    told = [message for message in caplog.messages if "trained with other weights" in message]
    assert len(told) == 1 and "--wav2vec" in told[0]


def test_a_condition_of_another_base_is_refused_before_models_load(ask_talking, audio_lora, tmp_path):
    from common.errors import NetworkFileError
    from networks.formats import read_lora

    tensors = load_file(audio_lora)
    key = "conditions.omniavatar_add.audio_cond_projs.0.weight"
    path = tmp_path / "wide.safetensors"
    save_tensors(path, tensors | {key: torch.zeros(512, tensors[key].shape[1])}, read_lora(audio_lora).metadata)
    with pytest.raises(NetworkFileError, match="audio_cond_projs"):
        load_pipeline(ask_talking(lora_weight=[path]))
