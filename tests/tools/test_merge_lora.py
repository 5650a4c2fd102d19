"""Merged DiTs: what a loader would have merged, bit for bit; and what is told and refused."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError, NetworkFileError
from common.tensorfile import load_tensors, read_header, save_tensors
from networks.condition_weights import condition_tensors
from networks.files import save_network
from networks.formats import read_lora
from networks.lora_wan import create_network
from networks.merge import LoraMerge
from tools.merge_lora import main
import wan
from wan.conditions.registry import build_condition
from wan.modules.dit import WanDiT
from wan.weights.keys import to_diffusers


@pytest.fixture(scope="module")
def base(tiny_weights: Path) -> Path:
    return tiny_weights / "wan2.1_t2v_tiny.safetensors"


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA that moves the model, with an audio condition beside it."""
    dit = wan.load_dit(base)
    network = create_network(dit, dim=4, alpha=2.0)
    condition = build_condition("omniavatar_add", {"audio_states": "3", "audio_width": "32"}, dit.variant)
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=source))
    path = tmp_path_factory.mktemp("lora") / "talking.safetensors"
    save_network(path, {**network.state(), **condition_tensors({"omniavatar_add": condition})}, {})
    return path


@pytest.fixture(scope="module")
def merged(base: Path, lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merged") / "merged.safetensors"
    main(["--dit", str(base), "--lora_weight", str(lora), "--lora_multiplier", "0.7", "--dtype", "fp32",
          "--out", str(path)])
    return path


def velocity(dit: WanDiT) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    latents = torch.randn(1, 16, 3, 8, 8, generator=draws)
    return dit(latents, torch.tensor([600.0]), [torch.randn(7, 64, generator=draws)])


def merged_on_load(base: Path, lora: Path, multiplier: float, dtype: torch.dtype = torch.float32) -> WanDiT:
    return wan.load_dit(base, dtype=dtype, transform=LoraMerge([(read_lora(lora), multiplier)]))


def test_a_merged_model_is_the_one_that_merging_on_load_gives_bit_for_bit(base: Path, lora: Path, merged: Path) -> None:
    written, loaded = wan.load_dit(merged), merged_on_load(base, lora, 0.7)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(written.state_dict()[name], tensor), name
    found = velocity(written)
    assert torch.equal(found, velocity(loaded))
    assert (found - velocity(wan.load_dit(base))).std() > 0.01, "the LoRA does something"


def test_a_bf16_file_is_what_a_bf16_run_merges(base: Path, lora: Path, tmp_path: Path) -> None:
    main(["--dit", str(base), "--lora_weight", str(lora), "--dtype", "bf16", "--out", str(tmp_path / "a.safetensors")])
    loaded = merged_on_load(base, lora, 1.0, torch.bfloat16).state_dict()
    written, _ = load_tensors(tmp_path / "a.safetensors")
    assert written.keys() == loaded.keys(), "official names, nothing else"
    assert all(torch.equal(written[name], loaded[name]) and written[name].dtype == torch.bfloat16 for name in written)


def test_conditions_stay_and_are_named_with_the_way_to_use_them(base: Path, lora: Path, tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.safetensors"
    main(["--dit", str(base), "--lora_weight", str(lora), "--out", str(out)])
    told = capsys.readouterr().out
    assert "tensors of the condition omniavatar_add in talking.safetensors" in told
    assert f"--dit {out} --lora_weight {lora} --no_lora" in told
    metadata, header = read_header(out)
    assert not [name for name in header if "omniavatar" in name or name.startswith("conditions.")]
    assert json.loads(metadata["omnituner.merged"]) == {
        "base": base.name, "files": [{"file": "talking.safetensors", "multiplier": 1.0}]}


def test_shards_with_an_index_are_the_same_model(base: Path, lora: Path, merged: Path, tmp_path: Path) -> None:
    main(["--dit", str(base), "--lora_weight", str(lora), "--lora_multiplier", "0.7", "--dtype", "fp32",
          "--shard_gib", "0.001", "--out", str(tmp_path / "a.safetensors")])
    shards = sorted(tmp_path.glob("a-*-of-*.safetensors"))
    assert len(shards) > 1 and (tmp_path / "a.safetensors.index.json").is_file()
    whole = wan.load_dit(merged).state_dict()
    for path in (shards[0], tmp_path / "a.safetensors.index.json", tmp_path):
        found = wan.load_dit(path).state_dict()
        assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_a_base_in_diffusers_names_comes_out_in_official_ones(base: Path, lora: Path, merged: Path,
                                                              tmp_path: Path) -> None:
    tensors, _ = load_tensors(base)
    save_tensors(tmp_path / "d.safetensors", {to_diffusers(name): tensor for name, tensor in tensors.items()}, {})
    main(["--dit", str(tmp_path / "d.safetensors"), "--lora_weight", str(lora), "--lora_multiplier", "0.7",
          "--dtype", "fp32", "--out", str(tmp_path / "a.safetensors")])
    written, expected = load_tensors(tmp_path / "a.safetensors")[0], load_tensors(merged)[0]
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[name], expected[name]) for name in expected)


def test_an_fp8_base_is_multiplied_out(base: Path, lora: Path, tmp_path: Path) -> None:
    tensors, _ = load_tensors(base)
    small = {name: tensor.to(torch.float8_e4m3fn) if name.startswith("blocks.") and name.endswith("ffn.0.weight")
             else tensor for name, tensor in tensors.items()}
    save_tensors(tmp_path / "fp8.safetensors", small, {})
    main(["--dit", str(tmp_path / "fp8.safetensors"), "--lora_weight", str(lora), "--out",
          str(tmp_path / "a.safetensors")])
    written, _ = load_tensors(tmp_path / "a.safetensors")
    loaded = merged_on_load(tmp_path / "fp8.safetensors", lora, 1.0, torch.bfloat16).state_dict()
    assert torch.equal(written["blocks.0.ffn.0.weight"], loaded["blocks.0.ffn.0.weight"])


def test_two_files_with_their_multipliers_add_up(base: Path, lora: Path, tmp_path: Path) -> None:
    words = ["--dit", str(base), "--lora_weight", str(lora), str(lora), "--dtype", "fp32"]
    main([*words, "--lora_multiplier", "0.5", "-0.5", "--out", str(tmp_path / "a.safetensors")])
    written, own = load_tensors(tmp_path / "a.safetensors")[0], load_tensors(base)[0]
    assert all(torch.allclose(written[name], own[name].float(), atol=1e-6) for name in own)
    with pytest.raises(ConfigError, match="3 for 2 files"):
        main([*words, "--lora_multiplier", "1", "1", "1", "--out", str(tmp_path / "b.safetensors")])


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(base: Path, lora: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.safetensors"
    tensors, _ = load_tensors(lora)
    cases: dict[str, tuple[dict[str, Tensor], type[Exception], str]] = {
        "conditions": ({key: value for key, value in tensors.items() if key.startswith("conditions.")}, ConfigError,
                       r"holds no LoRA, only conditions \(omniavatar_add\)"),
        "wide": ({"lora_unet_blocks_0_self_attn_q.lora_down.weight": torch.ones(2, 64),
                  "lora_unet_blocks_0_self_attn_q.lora_up.weight": torch.ones(64, 2)}, NetworkFileError,
                 "another base"),
        "nan": ({key: value * torch.nan for key, value in tensors.items() if key.startswith("lora_unet_")
                 and not key.endswith("alpha")}, ConfigError, "NaN"),
    }
    for name, (content, error, told) in cases.items():
        save_tensors(tmp_path / f"{name}.safetensors", content, {})
        with pytest.raises(error, match=told):
            main(["--dit", str(base), "--lora_weight", str(tmp_path / f"{name}.safetensors"), "--out", str(out)])
        assert not out.exists() and not list(tmp_path.glob(".*.tmp*"))
    with pytest.raises(ConfigError, match="is a file that is read"):
        main(["--dit", str(base), "--lora_weight", str(lora), "--out", str(lora)])
