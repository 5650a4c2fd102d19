"""CLIP's vision tower against the original's outputs, and every layout that its weights come in."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
import torch

from common.errors import WeightsError
from tests.light_set import light_input, light_outputs
from wan.encoders.image import ImageEncoder, load_image_encoder


def test_light_set_is_met(light_clip: Path) -> None:
    """Source: Wan 2.1's own vision tower in float32, output of the last block but one."""
    features = load_image_encoder(light_clip, heads=4).encode(light_input("clip.image", (3, 70, 100))[None])[0]
    assert (features - light_outputs()["clip.features"]).abs().max() < 1e-4


def test_golden_features_are_met(golden: Path) -> None:
    encoder = load_image_encoder(golden / "clip_xlm_roberta.pth", heads=4)
    cases = load_file(golden / "clip_xlm_roberta_io.safetensors")
    for case in range(2):
        assert (encoder.encode(cases[f"{case}.image"][None])[0] - cases[f"{case}.features"]).abs().max() < 1e-4


def hugging_face_state(path: Path) -> dict[str, torch.Tensor]:
    """The tower under transformers' names without prefix."""
    model = load_image_encoder(path, heads=4).model
    return {key.removeprefix("vision_model."): tensor.clone() for key, tensor in model.state_dict().items()}


def test_every_layout_gives_the_same_features(light_clip: Path, tmp_path: Path) -> None:
    official, hf = torch.load(light_clip, weights_only=True), hugging_face_state(light_clip)
    visual = {key.removeprefix("visual."): tensor for key, tensor in official.items() if key.startswith("visual.")}
    prefixed = {f"vision_model.{key}": tensor for key, tensor in hf.items()}
    layouts = {
        "bare": visual,
        "hugging_face": hf,
        "comfyui": prefixed | {"visual_projection.weight": torch.zeros(8, 48),
                               "vision_model.embeddings.position_ids": torch.arange(17)[None]},
        "whole_clip": prefixed | {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.ones(1),
                                  "text_projection.weight": torch.ones(4, 4)},
    }
    image = light_input("clip.image", (1, 3, 70, 100))
    expected = load_image_encoder(light_clip, heads=4).encode(image)
    for name, state in layouts.items():
        save_file(state, tmp_path / f"{name}.safetensors")
        assert torch.equal(load_image_encoder(tmp_path / f"{name}.safetensors", heads=4).encode(image), expected), name


def test_pictures_are_stretched_to_the_square_without_antialias(light_clip: Path) -> None:
    encoder = load_image_encoder(light_clip, heads=4)
    stripes = torch.ones(1, 3, 112, 56)
    stripes[:, :, ::2] = -1
    middle = encoder.preprocess(stripes)[0, 0, 28]
    plain = torch.nn.functional.interpolate(stripes, size=(56, 56), mode="bicubic", align_corners=False)[0, 0, 28]
    torch.testing.assert_close(middle * 0.26862954 + 0.48145466, plain * 0.5 + 0.5)
    assert encoder.preprocess(stripes).shape == (1, 3, 56, 56)


def test_a_batch_gives_what_its_members_give(light_clip: Path) -> None:
    encoder = load_image_encoder(light_clip, heads=4)
    pictures = light_input("two", (2, 3, 40, 60))
    alone = torch.cat([encoder.encode(pictures[:1]), encoder.encode(pictures[1:])])
    torch.testing.assert_close(encoder.encode(pictures), alone, atol=1e-5, rtol=0)


def test_half_precision_normalises_in_float32(light_clip: Path) -> None:
    encoder = load_image_encoder(light_clip, heads=4, dtype=torch.bfloat16)
    picture = light_input("half", (1, 3, 56, 56))
    assert isinstance(encoder, ImageEncoder) and encoder.encode(picture).dtype == torch.bfloat16
    assert encoder.preprocess(picture).dtype == torch.float32


def test_heads_must_divide_the_width(light_clip: Path) -> None:
    with pytest.raises(WeightsError, match="width 48 cannot have 5 heads"):
        load_image_encoder(light_clip, heads=5)


def test_a_half_matching_file_is_refused(light_clip: Path, tmp_path: Path) -> None:
    state = torch.load(light_clip, weights_only=True)
    del state["visual.transformer.1.attn.to_qkv.bias"]
    state["visual.stranger.weight"] = torch.zeros(3)
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(WeightsError) as error:
        load_image_encoder(tmp_path / "half.pth", heads=4)
    for part in ("1 missing: visual.transformer.1.attn.to_qkv.bias", "1 unexpected: visual.stranger.weight"):
        assert part in str(error.value)


def test_another_model_is_named_as_no_vision_tower(light_t5: Path) -> None:
    with pytest.raises(WeightsError, match=r"not a CLIP vision tower.*models_clip"):
        load_image_encoder(light_t5)
