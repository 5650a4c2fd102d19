"""Loading the VAE: every layout, sizes from the weights, and what a wrong file is told."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
import torch

from common.errors import WeightsError
from wan.encoders.vae import diffusers_key, load_vae
from wan.modules.vae_coders import VaeShape


def test_the_official_file_is_loaded_frozen_and_in_eval_mode(light_vae: Path) -> None:
    vae = load_vae(light_vae)
    assert vae.shape == VaeShape(width=8)
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())


def test_every_layout_gives_the_same_latents(light_vae: Path, tmp_path: Path) -> None:
    state = torch.load(light_vae, weights_only=True)
    save_file(state, tmp_path / "wan_2.1_vae.safetensors")
    save_file({diffusers_key(key): tensor for key, tensor in state.items()}, tmp_path / "diffusers.safetensors")
    video = torch.linspace(-1, 1, 3 * 5 * 16 * 16).reshape(1, 3, 5, 16, 16)
    expected = load_vae(light_vae).encode(video)
    for path in (light_vae.parent, tmp_path / "wan_2.1_vae.safetensors", tmp_path, tmp_path / "diffusers.safetensors"):
        assert torch.equal(load_vae(path).encode(video), expected), path


def test_diffusers_names_are_those_of_the_key_map(shared: Path) -> None:
    """Source: key maps made by comparing the original with diffusers 0.42.1."""
    maps = json.loads((shared / "manifests" / "key_maps_to_diffusers_and_transformers.json").read_text())
    assert {key: diffusers_key(key) for key in maps["wan21_vae"]} == maps["wan21_vae"]


def test_another_width_is_read_from_the_weights(tmp_path: Path) -> None:
    from wan.modules.vae import Vae

    shape = VaeShape(width=4, multipliers=(1, 2, 2), residual_blocks=1, halves_time=(False, True))
    torch.save(Vae(shape).state_dict(), tmp_path / "vae.pth")
    assert load_vae(tmp_path / "vae.pth").shape == shape


def test_a_half_matching_file_is_refused_with_what_is_missing_and_unexpected(light_vae: Path, tmp_path: Path) -> None:
    state = torch.load(light_vae, weights_only=True)
    del state["decoder.middle.1.proj.weight"]
    state["stranger.weight"] = torch.zeros(3)
    state["conv2.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "half.pth")
    with pytest.raises(WeightsError) as error:
        load_vae(tmp_path / "half.pth")
    for part in ("1 missing: decoder.middle.1.proj.weight", "1 unexpected: stranger.weight", "conv2.bias [5]"):
        assert part in str(error.value)


def test_a_truncated_file_is_refused(light_vae: Path, tmp_path: Path) -> None:
    (tmp_path / "short.pth").write_bytes(light_vae.read_bytes()[:-50_000])
    with pytest.raises(WeightsError, match=r"short\.pth"):
        load_vae(tmp_path / "short.pth")


def test_another_model_is_named_as_no_vae(light_t5: Path) -> None:
    with pytest.raises(WeightsError, match=r"not a Wan 2\.1 VAE.*Wan2\.1_VAE\.pth"):
        load_vae(light_t5)


def test_the_wan22_vae_is_told_apart(golden: Path) -> None:
    with pytest.raises(WeightsError, match=r"VAE of Wan 2\.2"):
        load_vae(golden / "wan22_vae.pth")
