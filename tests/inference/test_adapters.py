"""LoRA files in a generation: strengths, patterns, layouts, merged and attached, and float8 bases."""

import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError
from common.tensorfile import save_tensors
from inference import generate


@pytest.fixture(scope="module")
def lora(audio_lora, tmp_path_factory):
    """The LoRA part of the audio file alone, ten times as strong."""
    tensors = {key: tensor * (10 if "lora_up" in key else 1) for key, tensor in load_file(audio_lora).items()
               if key.startswith("lora_unet_")}
    path = tmp_path_factory.mktemp("plain") / "style.safetensors"
    save_tensors(path, tensors, {})
    return path


def latents(request) -> torch.Tensor:
    return generate(request).latents


def test_a_lora_changes_the_video_and_multiplier_zero_does_not(ask, lora):
    plain = latents(ask(video_length=5))
    assert not torch.allclose(plain, latents(ask(video_length=5, lora_weight=[lora])), atol=1e-3)
    assert torch.equal(plain, latents(ask(video_length=5, lora_weight=[lora], lora_multiplier=[0.0])))


def test_attached_equals_merged(ask, lora):
    settings = {"video_length": 5, "lora_weight": [lora, lora], "lora_multiplier": [0.5, -0.2]}
    merged, attached = latents(ask(**settings)), latents(ask(**settings, lora_attach=True))
    torch.testing.assert_close(merged, attached, atol=1e-3, rtol=0)
    once = latents(ask(video_length=5, lora_weight=[lora], lora_multiplier=[0.3]))
    torch.testing.assert_close(merged, once, atol=1e-3, rtol=0)


def test_an_attached_audio_lora_keeps_its_condition(ask_talking):
    merged, attached = latents(ask_talking()), latents(ask_talking(lora_attach=True))
    torch.testing.assert_close(merged, attached, atol=1e-3, rtol=0)


def test_patterns_choose_modules(ask, lora):
    whole = latents(ask(video_length=5, lora_weight=[lora]))
    plain = latents(ask(video_length=5))
    parts = {"include_patterns": [r"self_attn"]}, {"exclude_patterns": [r"cross_attn", r"ffn\."]}
    one, other = (latents(ask(video_length=5, lora_weight=[lora], **part)) for part in parts)
    assert torch.equal(one, other)
    assert not torch.equal(one, whole) and not torch.equal(one, plain)
    with pytest.raises(ConfigError, match="leave nothing"):
        generate(ask(video_length=5, lora_weight=[lora], include_patterns=["self_attention"]))


@pytest.mark.parametrize("flag", ["fp8", "fp8_scaled"])
def test_a_float8_base_gives_nearly_the_same_video_with_the_lora_in_it(ask, lora, flag):
    exact = latents(ask(video_length=5, lora_weight=[lora]))
    plain = latents(ask(video_length=5))
    stored = latents(ask(video_length=5, lora_weight=[lora], **{flag: True}))
    assert (stored - exact).abs().mean() < 0.5 * (plain - exact).abs().mean()
    assert not torch.equal(stored, exact)
