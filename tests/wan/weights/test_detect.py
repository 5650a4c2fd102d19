"""Telling which model a file holds, and refusing what is none."""

from collections.abc import Mapping
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
import torch

from common.errors import WeightsError
from tests.wan.weights import layouts
import wan
from wan.modules.dit import WanDiT
from wan.weights.detect import detect_dit
from wan.weights.files import Stored, TensorFile
from wan.weights.load import plan
from wan.weights.source import WeightsSource, open_weights


def _source(shapes: Mapping[str, tuple[int, ...]], path: Path = Path("model.safetensors")) -> WeightsSource:
    """A source of names and shapes without data, for models that fit no test machine."""
    entries = {name: Stored(torch.bfloat16, tuple(shape), (), position)
               for position, (name, shape) in enumerate(shapes.items())}
    return WeightsSource(path, [TensorFile(path, entries, {})])


def _manifest(shared: Path, name: str) -> dict[str, tuple[int, ...]]:
    tensors = json.loads((shared / "manifests" / f"{name}.json").read_text())["tensors"]
    return {key: tuple(shape) for key, (shape, _) in tensors.items()}


@pytest.mark.parametrize(("name", "family", "dim", "heads", "layers"), [
    ("wan21_t2v_1.3B", "t2v", 1536, 12, 30), ("wan21_t2v_14B", "t2v", 5120, 40, 40),
    ("wan21_i2v_14B", "i2v", 5120, 40, 40), ("wan21_flf2v_14B", "flf2v", 5120, 40, 40)])
def test_released_files_map_one_to_one(name: str, family: str, dim: int, heads: int, layers: int, shared: Path) -> None:
    shapes = _manifest(shared, name)
    source = _source(shapes)
    variant = detect_dit(source).variant
    assert (variant.family, variant.dim, variant.heads, variant.layers) == (family, dim, heads, layers)
    assert variant.text_dim == 4096
    with torch.device("meta"):
        dit = WanDiT(variant)
    assert {key: tuple(tensor.shape) for key, tensor in dit.state_dict().items()} == shapes
    assert len(plan(dit, source, None, lambda key: False)) == len(shapes)


@pytest.mark.parametrize(("name", "message"), [
    ("wan21_vace_1.3B", "a VACE model. Support for it comes later"),
    ("wan21_vace_14B", "a VACE model. Support for it comes later"),
    ("wan22_s2v_14B", "a Wan 2.2 S2V model. Support for it comes later"),
    ("wan22_animate_14B", "a Wan 2.2 Animate model. Support for it comes later"),
    ("wan22_ti2v_5B", "the Wan 2.2 TI2V-5B model. Support for Wan 2.2 comes later"),
    ("wan22_i2v_A14B", "a Wan 2.2 I2V-A14B expert. Support for Wan 2.2 comes later"),
    ("wan21_vae", "not a Wan DiT; it looks like the Wan 2.1 VAE, which --vae takes"),
    ("wan22_vae", "not a Wan DiT; it looks like the Wan 2.2 VAE"),
    ("umt5_xxl_encoder", "not a Wan DiT; it looks like the umT5 text encoder, which --t5 takes"),
    ("clip_xlm_roberta_vit_h_14", "not a Wan DiT; it looks like the CLIP image encoder, which --clip takes"),
    ("omniavatar_1.3B_exp", "not a Wan DiT; it looks like OmniAvatar's adapter"),
])
def test_other_released_files_are_called_by_their_names(name: str, message: str, shared: Path) -> None:
    shapes = _manifest(shared, name)
    if name.startswith("omniavatar"):  # the loader's key names: see golden/README.md section 3
        shapes["blocks.0.self_attn.q.lora_A.default.weight"] = (8, 8)
    with pytest.raises(WeightsError) as caught:
        detect_dit(_source(shapes))
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(("given", "message"), [
    ("Wan2.1_VAE.pth", "it looks like the Wan 2.1 VAE, which --vae takes"),
    ("models_t5_umt5-xxl-enc-bf16.pth", "it looks like the umT5 text encoder"),
    ("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "it looks like the CLIP image encoder"),
    ("wav2vec2-base-960h", "it looks like a wav2vec2 audio encoder"),
])
def test_another_file_of_the_set_is_recognised(given: str, message: str, tiny_weights: Path) -> None:
    with pytest.raises(WeightsError, match="not a Wan DiT") as caught:
        wan.load_dit(tiny_weights / given)
    assert message in str(caught.value)


@pytest.mark.parametrize(("keys", "message"), [
    (["lora_unet_blocks_0_ffn_0.lora_down.weight", "lora_unet_blocks_0_ffn_0.alpha"], "it looks like a LoRA"),
    (["diffusion_model.blocks.0.ffn.0.lora_A.weight"], "it looks like a LoRA"),
    (["lora_unet_blocks_0_ffn_0.lokr_w1"], "LyCORIS adapter"),
    (["shared.weight", "encoder.block.0.layer.0.SelfAttention.q.weight"], "the umT5 text encoder"),
    (["vision_model.embeddings.class_embedding"], "the CLIP image encoder"),
    (["encoder.conv_in.weight", "decoder.conv_in.weight"], "a VAE in diffusers' layout"),
    (["double_blocks.0.img_mod.weight"], "HunyuanVideo or Flux"),
    (["model.diffusion_model.input_blocks.0.weight"], "Stable Diffusion"),
    (["foo", "bar"], r"its 2 tensors are of no model that is known \(bar, foo, …\)"),
])
def test_other_layouts_are_recognised(keys: list[str], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        detect_dit(_source({key: (4, 4) for key in keys}))


def test_a_folder_of_two_experts_comes_later(tmp_path: Path) -> None:
    (tmp_path / "high_noise_model").mkdir()
    with pytest.raises(WeightsError, match="two experts of a Wan 2.2 A14B model.*comes later"):
        wan.load_dit(tmp_path)


def test_an_expert_by_name_is_used_with_a_warning(tmp_path: Path, tiny_weights: Path, caplog) -> None:
    path = tmp_path / "wan2.2_t2v_high_noise_14B.safetensors"
    path.symlink_to(tiny_weights / "wan2.1_t2v_tiny.safetensors")
    assert wan.load_dit(path).variant.family == "t2v"
    assert "by its name an expert of Wan 2.2" in caplog.text


def test_a_half_matching_file_lists_what_is_missing_and_unexpected(tmp_path: Path, tiny_weights: Path) -> None:
    tensors = load_file(tiny_weights / "wan2.1_t2v_tiny.safetensors")
    for name in [name for name in tensors if name.startswith("blocks.2.")]:
        del tensors[name]
    tensors["blocks.1.extra.weight"] = torch.zeros(2)
    with pytest.raises(WeightsError) as caught:
        wan.load_dit(layouts.official(tmp_path, tensors))
    text = str(caught.value)
    assert "27 missing: blocks.2.modulation" in text or "27 missing: blocks.2." in text
    assert "1 unexpected: blocks.1.extra.weight" in text


def test_missing_names_are_told_as_the_file_would_spell_them(tmp_path: Path, tiny_weights: Path) -> None:
    tensors = load_file(tiny_weights / "wan2.1_i2v_tiny.safetensors")
    del tensors["blocks.1.cross_attn.k_img.weight"]
    with pytest.raises(WeightsError, match="1 missing: blocks.1.attn2.add_k_proj.weight"):
        wan.load_dit(layouts.diffusers_folder(tmp_path, tensors))


def test_one_renamed_shard_is_known_as_a_part(tmp_path: Path, tiny_weights: Path) -> None:
    tensors = load_file(tiny_weights / "wan2.1_t2v_tiny.safetensors")
    part = {name: tensor for name, tensor in tensors.items() if name.startswith("blocks.")}
    save_file(part, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="only a part of a Wan DiT: .*patch_embedding.weight.*missing"):
        wan.load_dit(tmp_path / "x.safetensors")


def test_channels_of_no_known_model_are_refused(tmp_path: Path, tiny_weights: Path) -> None:
    tensors = load_file(tiny_weights / "wan2.1_t2v_tiny.safetensors")
    tensors["patch_embedding.weight"] = torch.zeros(256, 33, 1, 2, 2)
    with pytest.raises(WeightsError, match="33 input and 16 output channels without an image branch is none"):
        wan.load_dit(layouts.official(tmp_path, tensors))


def test_head_width_is_an_argument_or_in_the_config(tmp_path: Path, tiny_weights: Path) -> None:
    tensors = load_file(tiny_weights / "wan2.1_t2v_tiny.safetensors")
    path = layouts.official(tmp_path, tensors)
    assert wan.load_dit(path).variant.heads == 2
    assert wan.load_dit(path, head_dim=64).variant.heads == 4
    (tmp_path / "config.json").write_text(json.dumps({"dim": 256, "num_heads": 8}))
    assert wan.load_dit(path).variant.heads == 8
    assert wan.load_dit(path, head_dim=64).variant.heads == 4
    (tmp_path / "config.json").write_text(json.dumps({"dim": 5120, "num_heads": 40}))  # of another model
    assert wan.load_dit(path).variant.heads == 2
    with pytest.raises(WeightsError, match="width 256 cannot be cut into heads of 100"):
        wan.load_dit(path, head_dim=100)


def test_golden_files_tell_their_widths(golden: Path) -> None:
    found = detect_dit(open_weights(golden / "omniavatar_base")).variant
    assert (found.dim, found.heads, found.layers, found.ffn_dim, found.text_dim) == (256, 2, 6, 320, 64)
    found = detect_dit(open_weights(golden / "pipe_i2v_dit.safetensors"), head_dim=64).variant
    assert (found.family, found.heads, found.image_dim) == ("i2v", 2, 64)


def test_import_wan_costs_nothing(root: Path) -> None:
    import subprocess
    import sys

    code = "import sys, wan; assert 'torch' not in sys.modules; assert 'load_vae' in dir(wan)"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_unknown_names_of_wan_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="module 'wan' has no attribute 'load_nothing'"):
        wan.load_nothing  # noqa: B018
