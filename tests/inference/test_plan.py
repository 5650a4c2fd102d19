"""What is refused before a model is loaded, and the defaults that are filled in."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from common.errors import ConfigError, MediaError, NetworkFileError, UserError, WeightsError
from inference.pipeline import load_pipeline
from inference.plan import Plan
from inference.request import GenerationRequest
from wan.variants import OMNIAVATAR_NEGATIVE_PROMPT, TASKS


def plan(request: GenerationRequest) -> Plan:
    return load_pipeline(request).plan(request)


def test_defaults_come_from_the_task(ask, face):
    made = plan(ask("t2v", infer_steps=None, seed=None))
    assert (made.sampling.steps, made.sampling.shift, made.guidance, made.fps) == (50, 5.0, 5.0, 16)
    assert made.length.frames == 81 and made.negative_prompt == TASKS["t2v-1.3B"].negative_prompt
    assert made.request.seed is not None and made.seed == made.request.seed
    image = plan(ask("i2v", image_path=face, infer_steps=None, video_size=(480, 832)))
    assert image.sampling.steps == 40 and image.negative_prompt.startswith("镜头晃动")
    assert image.picture_mode == "wan_i2v" and image.features == ("image_latents", "clip")
    assert plan(ask("t2v", task="t2i-14B")).length.frames == 1
    assert plan(ask("t2v", guidance_scale=0.0, negative_prompt="")).guidance == 0
    assert plan(ask("t2v", negative_prompt="")).negative_prompt == ""


def test_an_audio_condition_brings_its_own_defaults(ask_talking):
    made = plan(ask_talking())
    assert (made.fps, made.guidance, made.picture_mode) == (25, 4.5, "cover")
    assert made.negative_prompt == OMNIAVATAR_NEGATIVE_PROMPT and made.starts_from_picture
    assert plan(ask_talking(fps=20)).length.shown == 10


@pytest.mark.parametrize(("family", "settings", "message"), [
    ("t2v", {"prompt": ""}, "--prompt is required"),
    ("t2v", {"video_size": (30, 48)}, "multiples of 16. Height 16 or 32"),
    ("t2v", {"image_path": "FACE"}, "does not start from a picture"),
    ("t2v", {"end_image_path": "FACE"}, "only first.last frame models"),
    ("t2v", {"audio": "SPEECH"}, "nothing here can follow a sound"),
    ("t2v", {"control_path": "FACE"}, "only Fun-Control"),
    ("t2v", {"trim_tail_frames": 81}, "leaves nothing"),
    ("i2v", {}, "--image_path is required"),
    ("i2v", {"image_path": "FACE", "end_image_path": "FACE"}, "only first.last frame models"),
    ("i2v", {"image_path": "FACE", "clip": None}, "--clip is required"),
    ("i2v", {"image_path": "missing.png"}, "missing.png: no such file"),
    ("flf2v", {"image_path": "FACE"}, "--end_image_path is required"),
])
def test_inputs_that_do_not_fit_the_model_are_refused(ask, face, speech, family, settings, message):
    media = {"FACE": face, "SPEECH": speech}
    with pytest.raises(ConfigError, match=message):
        plan(ask(family, **{name: media.get(value, value) if isinstance(value, str) else value
                            for name, value in settings.items()}))


@pytest.mark.parametrize(("settings", "message"), [
    ({"audio": None}, "--audio is required"), ({"image_path": None}, "--image_path is required: the condition"),
    ({"wav2vec": None}, "--wav2vec is required"),
    ({"max_tokens": 1, "video_size": (512, 512)}, "a chunk of 5 frames brings nothing new"),
])
def test_an_audio_driven_video_needs_its_inputs(ask_talking, settings, message):
    with pytest.raises(ConfigError, match=message):
        plan(ask_talking(**settings))


def test_problems_are_listed_together(ask):
    with pytest.raises(ConfigError) as caught:
        plan(ask("i2v", prompt="", video_size=(30, 48), clip=None))
    assert "4 problems" in str(caught.value)


def test_unusable_media_are_refused(ask_talking, tmp_path):
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    empty = tmp_path / "empty.wav"
    soundfile.write(empty, np.zeros(0, np.float32), 16000)
    with pytest.raises(MediaError) as caught:
        plan(ask_talking(image_path=torn, audio=empty))
    assert "torn.png" in str(caught.value) and "empty.wav" in str(caught.value)


def test_weights_of_another_variant_than_the_task_are_refused(ask, face):
    with pytest.raises(WeightsError, match="t2v.*--task i2v-14B"):
        plan(ask("t2v", task="i2v-14B", image_path=face))


def test_missing_model_files_are_listed_together(ask):
    with pytest.raises(ConfigError) as caught:
        plan(ask("t2v", vae=None, t5=Path("nowhere.pth"), lora_weight=[Path("gone.safetensors")]))
    text = str(caught.value)
    assert "--vae is required" in text and "nowhere.pth" in text and "gone.safetensors" in text


def test_a_lora_that_fits_nothing_is_refused(ask, tmp_path):
    from safetensors.torch import save_file
    import torch

    stranger = tmp_path / "flux.safetensors"
    save_file({"lora_unet_double_blocks_0_q.lora_down.weight": torch.zeros(2, 8),
               "lora_unet_double_blocks_0_q.lora_up.weight": torch.zeros(8, 2)}, stranger)
    with pytest.raises(NetworkFileError, match="none of its modules"):
        plan(ask("t2v", lora_weight=[stranger]))
    with pytest.raises(UserError):
        plan(ask("i2v", lora_weight=[stranger]))


def test_two_files_with_the_same_condition_are_refused(ask_talking, audio_lora):
    with pytest.raises(NetworkFileError, match="brings the condition"):
        plan(ask_talking(lora_weight=[audio_lora, audio_lora]))


def test_an_official_folder_fills_the_paths(ask, tiny_weights, tmp_path):
    for name in ("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"):
        (tmp_path / name).symlink_to(tiny_weights / name)
    (tmp_path / "diffusion_pytorch_model.safetensors").symlink_to(tiny_weights / "wan2.1_t2v_tiny.safetensors")
    request = ask("t2v", ckpt_dir=tmp_path, dit=None, vae=None, t5=None)
    pipeline = load_pipeline(request)
    assert pipeline.files.vae == tmp_path / "Wan2.1_VAE.pth" and pipeline.files.variant.family == "t2v"
    assert pipeline.plan(request).request.vae == tmp_path / "Wan2.1_VAE.pth"
    with pytest.raises(ConfigError, match="no such folder"):
        load_pipeline(ask("t2v", ckpt_dir=tmp_path / "x"))


@pytest.mark.parametrize(("flag", "file", "words"), [
    ("vae", "models_t5_umt5-xxl-enc-bf16.pth", "a Wan 2.1 VAE"),
    ("t5", "Wan2.1_VAE.pth", "umT5"),
])
def test_encoders_of_another_kind_are_refused_before_anything_loads(ask, tiny_weights: Path, flag, file, words):
    with pytest.raises(WeightsError, match=words):
        plan(ask("t2v", **{flag: tiny_weights / file}))
