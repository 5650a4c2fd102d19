"""Layouts of LoRA files: every one is recognised, and what cannot be used is refused."""

import json

import pytest
from safetensors.torch import save_file
import torch

from common.errors import NetworkFileError
from networks.attach import attach_lora
from networks.formats import read_lora
from networks.merge import merge_transform
from tests.networks.toy import WIDTH, toy

PATH, RANK = "blocks.1.self_attn.q", 4
NAMES = [name for name, _ in toy().named_parameters()]


@pytest.fixture
def pair():
    source = torch.Generator().manual_seed(0)
    return torch.randn(RANK, WIDTH, generator=source), torch.randn(WIDTH, RANK, generator=source)


def delta_of_file(path, name=PATH + ".weight", multiplier=1.0):
    """What merging the file adds to the weight."""
    weight = toy().get_parameter(name)
    merge = merge_transform([(path, multiplier)], NAMES)
    return merge(name, weight) - weight, merge.reports()[0]


LAYOUTS = {
    # layout: (down key, up key, alpha key or None, told layout, scale)
    "kohya": ("lora_unet_blocks_1_self_attn_q.lora_down.weight", "lora_unet_blocks_1_self_attn_q.lora_up.weight",
              "lora_unet_blocks_1_self_attn_q.alpha", "kohya/musubi-tuner", 0.5),
    "VideoX-Fun": ("lora_unet__blocks_1_self_attn_q.lora_down.weight", "lora_unet__blocks_1_self_attn_q.lora_up.weight",
                   "lora_unet__blocks_1_self_attn_q.alpha", "VideoX-Fun", 0.5),
    "ComfyUI": (f"diffusion_model.{PATH}.lora_A.weight", f"diffusion_model.{PATH}.lora_B.weight", None, "ComfyUI", 1),
    "SimpleTuner": (f"diffusion_model.{PATH}.lora_A.weight", f"diffusion_model.{PATH}.lora_B.weight",
                    f"diffusion_model.{PATH}.alpha", "ComfyUI", 0.5),
    "lightx2v": (f"diffusion_model.{PATH}.lora_down.weight", f"diffusion_model.{PATH}.lora_up.weight", None, "ComfyUI",
                 1),
    "model prefix": (f"model.diffusion_model.{PATH}.lora_A.weight", f"model.diffusion_model.{PATH}.lora_B.weight", None,
                     "ComfyUI", 1),
    "diffusers": ("transformer.blocks.1.attn1.to_q.lora_A.weight", "transformer.blocks.1.attn1.to_q.lora_B.weight",
                  None, "diffusers", 1),
    "old diffusers": ("transformer.blocks.1.attn1.to_q.lora.down.weight",
                      "transformer.blocks.1.attn1.to_q.lora.up.weight", None, "diffusers", 1),
    "PEFT": (f"base_model.model.{PATH}.lora_A.weight", f"base_model.model.{PATH}.lora_B.weight", None, "PEFT", 1),
    "PEFT of diffusers": ("base_model.model.blocks.1.attn1.to_q.lora_A.default.weight",
                          "base_model.model.blocks.1.attn1.to_q.lora_B.default.weight", None, "PEFT", 1),
    "DiffSynth": (f"{PATH}.lora_A.default.weight", f"{PATH}.lora_B.default.weight", None, "DiffSynth", 1),
    "pipe.dit": (f"pipe.dit.{PATH}.lora_A.default.weight", f"pipe.dit.{PATH}.lora_B.default.weight", None, "DiffSynth",
                 1),
    "bare": (f"{PATH}.lora_A.weight", f"{PATH}.lora_B.weight", None, "bare names", 1),
    "LyCORIS LoRA": ("lycoris_blocks_1_attn1_to_q.lora_down.weight", "lycoris_blocks_1_attn1_to_q.lora_up.weight",
                     "lycoris_blocks_1_attn1_to_q.alpha", "LyCORIS", 0.5),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_is_recognised_and_merged_with_its_scale(tmp_path, pair, layout):
    down_key, up_key, alpha_key, told, scale = LAYOUTS[layout]
    tensors = {down_key: pair[0], up_key: pair[1]}
    if alpha_key:
        tensors[alpha_key] = torch.tensor(scale * RANK)
    save_file(tensors, tmp_path / "lora.safetensors")
    delta, report = delta_of_file(tmp_path / "lora.safetensors", multiplier=-2.0)
    assert torch.allclose(delta, -2 * scale * pair[1] @ pair[0], atol=1e-5)
    assert (report.layout, report.applied, report.unused) == (told, 1, [])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attaching_equals_merging(tmp_path, pair, layout):
    down_key, up_key, alpha_key, _, scale = LAYOUTS[layout]
    tensors = {down_key: pair[0], up_key: pair[1]}
    if alpha_key:
        tensors[alpha_key] = torch.tensor(scale * RANK)
    save_file(tensors, tmp_path / "lora.safetensors")
    merged, attached, x = toy(), toy(), torch.randn(2, 5, WIDTH)
    merge = merge_transform([(tmp_path / "lora.safetensors", 0.5)])
    merged.load_state_dict({name: merge(name, value) for name, value in merged.state_dict().items()})
    network, _ = attach_lora(attached, tmp_path / "lora.safetensors", 0.5)
    assert torch.allclose(attached(x), merged(x), atol=1e-4)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("settings", "scale"), [
    ({"r": RANK, "lora_alpha": 2}, 0.5),
    ({"r": RANK, "lora_alpha": 2, "use_rslora": True}, 1.0),
    ({"r": RANK, "lora_alpha": 2, "alpha_pattern": {"self_attn.q": 12}}, 3.0),
])
def test_alpha_comes_from_peft_settings_beside(tmp_path, pair, settings, scale):
    save_file({f"base_model.model.{PATH}.lora_A.weight": pair[0], f"base_model.model.{PATH}.lora_B.weight": pair[1]},
              tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    delta, _ = delta_of_file(tmp_path)
    assert torch.allclose(delta, scale * pair[1] @ pair[0], atol=1e-5)


@pytest.mark.parametrize("metadata", [{"lora_adapter_metadata": json.dumps({"transformer.r": 4,
                                                                            "transformer.lora_alpha": 8})},
                                      {"lora_config": json.dumps({"r": 4, "lora_alpha": 8})}])
def test_alpha_comes_from_metadata(tmp_path, pair, metadata):
    save_file({"transformer.blocks.1.attn1.to_q.lora_A.weight": pair[0],
               "transformer.blocks.1.attn1.to_q.lora_B.weight": pair[1]}, tmp_path / "a.safetensors", metadata)
    delta, _ = delta_of_file(tmp_path / "a.safetensors")
    assert torch.allclose(delta, 2 * pair[1] @ pair[0], atol=1e-5)


def test_unknown_strength_is_told(tmp_path, pair):
    save_file({f"{PATH}.lora_A.weight": pair[0], f"{PATH}.lora_B.weight": pair[1]}, tmp_path / "a.safetensors")
    _, report = delta_of_file(tmp_path / "a.safetensors")
    assert "strength 1 assumed" in report.text()


def test_omniavatar_pickle_gives_its_lora(golden):
    lora = read_lora(golden / "omniavatar_exp" / "pytorch_model.pt")
    assert lora.layout == "OmniAvatar"
    assert len(lora.entries) == 60
    assert {entry.scale for entry in lora.entries.values()} == {0.5}
    assert len(lora.conditions) == 10 and not lora.others
    assert read_lora(golden / "omniavatar_exp").entries.keys() == lora.entries.keys()


def test_deltas_of_weight_bias_and_modulation_are_merged(tmp_path):
    save_file({"diffusion_model.blocks.0.norm3.diff": torch.ones(WIDTH),
               "diffusion_model.blocks.0.norm3.diff_b": 2 * torch.ones(WIDTH),
               "diffusion_model.blocks.0.ffn.0.diff_b": 3 * torch.ones(24),
               "diffusion_model.blocks.0.diff_m": 4 * torch.ones(1, 6, WIDTH),
               "diffusion_model.head.head.diff": 5 * torch.ones(WIDTH, WIDTH)}, tmp_path / "a.safetensors")
    expected = {"blocks.0.norm3.weight": 0.5, "blocks.0.norm3.bias": 1.0, "blocks.0.ffn.0.bias": 1.5,
                "blocks.0.modulation": 2.0, "head.head.weight": 2.5}
    for name, value in expected.items():
        delta, report = delta_of_file(tmp_path / "a.safetensors", name, multiplier=0.5)
        assert torch.allclose(delta, torch.full_like(delta, value), atol=1e-6)
    assert report.unused == []
    with pytest.raises(NetworkFileError, match="can only be merged"):
        attach_lora(toy(), tmp_path / "a.safetensors")


def test_convolutions_are_merged(tmp_path):
    down, up = torch.randn(2, 3, 1, 2, 2), torch.randn(8, 2, 1, 1, 1)
    save_file({"diffusion_model.patch_embedding.lora_down.weight": down,
               "diffusion_model.patch_embedding.lora_up.weight": up}, tmp_path / "a.safetensors")
    merge = merge_transform([(tmp_path / "a.safetensors", 1.0)])
    delta = merge("patch_embedding.weight", torch.zeros(8, 3, 1, 2, 2))
    assert torch.allclose(delta, torch.einsum("or,rithw->oithw", up[:, :, 0, 0, 0], down), atol=1e-6)


@pytest.mark.parametrize(("key", "message"), [
    ("lora_unet_blocks_1_self_attn_q.lora_mid.weight", "Tucker"),
    ("lora_unet_blocks_1_self_attn_q.hada_t1", "Tucker"),
    ("lora_unet_blocks_1_self_attn_q.lokr_t2", "Tucker"),
    ("lora_unet_blocks_1_self_attn_q.oft_blocks", "OFT"),
    (f"transformer_2.{PATH}.lora_A.weight", "two experts"),
    (f"diffusion_model.transformer_1.{PATH}.lora_A.weight", "two experts"),
])
def test_other_kinds_are_refused_by_name(tmp_path, pair, key, message):
    save_file({f"diffusion_model.{PATH}.lora_A.weight": pair[0], f"diffusion_model.{PATH}.lora_B.weight": pair[1],
               key: torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(NetworkFileError, match=message):
        read_lora(tmp_path / "a.safetensors")


def write_one(folder, tensors):
    save_file(tensors, folder / "a.safetensors")
    return folder / "a.safetensors"


def test_half_a_pair_is_refused(tmp_path, pair):
    with pytest.raises(NetworkFileError, match="stands alone"):
        read_lora(write_one(tmp_path, {f"{PATH}.lora_A.weight": pair[0]}))


def test_different_ranks_in_a_pair_are_refused(tmp_path, pair):
    with pytest.raises(NetworkFileError, match="different rank"):
        read_lora(write_one(tmp_path, {f"{PATH}.lora_A.weight": pair[0][:2].clone(), f"{PATH}.lora_B.weight": pair[1]}))


def test_a_file_without_lora_is_refused(tmp_path):
    with pytest.raises(NetworkFileError, match="no LoRA in it; its first keys are blocks.0.ffn.0.weight"):
        read_lora(write_one(tmp_path, {"blocks.0.ffn.0.weight": torch.zeros(2, 2)}))


def test_missing_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(NetworkFileError, match="no such LoRA file"):
        read_lora(tmp_path / "nothing.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"12345678901234567890")
    with pytest.raises(NetworkFileError, match="bad.safetensors"):
        read_lora(tmp_path / "bad.safetensors")
    (tmp_path / "bad.pt").write_bytes(b"12345678901234567890")
    with pytest.raises(NetworkFileError, match=r"cannot be read as tensors(?!.*weights_only)"):
        read_lora(tmp_path / "bad.pt")


def test_pickles_with_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("boo",)

    torch.save({"x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(NetworkFileError, match="holds\\s+code is refused"):
        read_lora(tmp_path / "evil.pt")


def test_a_file_for_another_model_is_refused(tmp_path, pair):
    other = write_one(tmp_path, {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": pair[0],
                                 "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": pair[1]})
    with pytest.raises(NetworkFileError, match="none of its modules is in this model.*double_blocks_0_img_attn_qkv"):
        merge_transform([(other, 1.0)], NAMES)
    with pytest.raises(NetworkFileError, match="none of its modules"):
        attach_lora(toy(), other)


def test_another_width_is_refused_with_both_sizes(tmp_path):
    file = write_one(tmp_path, {f"diffusion_model.{PATH}.lora_A.weight": torch.zeros(RANK, 32),
                                f"diffusion_model.{PATH}.lora_B.weight": torch.zeros(32, RANK)})
    with pytest.raises(NetworkFileError, match=r"\[32, 32\]; this model's is \[16, 16\]"):
        delta_of_file(file)
    with pytest.raises(NetworkFileError, match="32 -> 32 at .*; this model's is 16 -> 16"):
        attach_lora(toy(), file)


def test_unused_modules_are_listed(tmp_path, pair):
    tensors = {f"diffusion_model.{name}.lora_{side}.weight": tensor.clone()
               for name in (PATH, "blocks.7.self_attn.q") for side, tensor in zip("AB", pair, strict=True)}
    file = write_one(tmp_path, {**tensors, "diffusion_model.something": torch.zeros(1)})
    _, report = delta_of_file(file)
    assert report.unused == ["blocks.7.self_attn.q"]
    assert report.others == ["diffusion_model.something"]
    assert "1 modules applied" in report.text()
    assert "1 not in this model: blocks.7.self_attn.q" in report.text()
    assert attach_lora(toy(), file)[1].unused == ["blocks.7.self_attn.q"]


def test_names_with_underscores_are_not_guessed(tmp_path, pair):
    """musubi-tuner's converter turns `audio_cond_projs.0` into `audio.cond.projs.0`; real names are looked up here."""
    file = write_one(tmp_path, {"lora_unet_audio_cond_projs_0.lora_down.weight": pair[0],
                                "lora_unet_audio_cond_projs_0.lora_up.weight": pair[1]})
    merge = merge_transform([(file, 1.0)])
    assert torch.allclose(merge("audio_cond_projs.0.weight", torch.zeros(WIDTH, WIDTH)), pair[1] @ pair[0])


def test_a_name_that_fits_two_modules_is_refused(tmp_path, pair):
    file = write_one(tmp_path, {"lora_unet_a_b.lora_down.weight": pair[0], "lora_unet_a_b.lora_up.weight": pair[1]})
    merge = merge_transform([(file, 1.0)])
    merge("a.b.weight", torch.zeros(WIDTH, WIDTH))
    with pytest.raises(NetworkFileError, match="could mean 'a.b' or 'a_b'"):
        merge("a_b.weight", torch.zeros(WIDTH, WIDTH))


def test_untouched_tensors_come_back_themselves(tmp_path, pair):
    file = write_one(tmp_path, {f"{PATH}.lora_A.weight": pair[0], f"{PATH}.lora_B.weight": pair[1]})
    merge, weight = merge_transform([(file, 1.0)]), torch.zeros(3)
    assert merge("blocks.0.norm3.weight", weight) is weight
    assert merge("img_emb.emb_pos", weight) is weight


def test_merging_adds_in_float32(tmp_path, pair):
    """On a bfloat16 base a small delta would be rounded away if it were added in bfloat16."""
    file = write_one(tmp_path, {f"{PATH}.lora_A.weight": 1e-3 * pair[0], f"{PATH}.lora_B.weight": pair[1]})
    base = torch.full((WIDTH, WIDTH), 10.0, dtype=torch.bfloat16)
    merged = merge_transform([(file, 1.0)])(PATH + ".weight", base)
    assert merged.dtype == torch.float32
    assert torch.allclose(merged - 10, 1e-3 * pair[1] @ pair[0], atol=2e-6)
