"""Runs with other networks than plain LoRA of one rank."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
import torch

from common.errors import ConfigError, NetworkFileError
from networks.attach import attach_lora
from networks.merge import merge_transform
from tests.training.runs import losses, settings
from training import train
import wan


def lycoris(*args: str, **more: Any) -> dict[str, Any]:
    return {"network_module": "networks.lycoris_wan", "network_args": [*args], "max_train_steps": 2, **more}


@pytest.mark.parametrize("algo", ["dora", "loha", "lokr"])
def test_other_kinds_are_trained_beside_a_condition_saved_and_used(talking: Path, weights: Path, tmp_path: Path,
                                                                  algo: str) -> None:
    final = train(settings(talking, weights, tmp_path / "a", **lycoris(
        f"algo={algo}", "conditions=omniavatar_add", scale_weight_norms=5.0, gradient_checkpointing=True)))
    assert final is not None
    with safe_open(final, "pt") as file:
        told = file.metadata()
    assert (told["ss_network_module"], told["ss_network_dim"]) == ("networks.lycoris_wan", "4")
    assert json.loads(told["ss_network_args"])["algo"] == algo
    tensors = load_file(final)
    marks = {"dora": "dora_scale", "loha": "hada_w2_a", "lokr": "lokr_w2_b"}
    assert any(key.startswith("lora_unet_blocks_0_self_attn_q.") and marks[algo] in key and tensor.any()
               for key, tensor in tensors.items())
    assert any(key.startswith("conditions.omniavatar_add.") for key in tensors)

    base = weights / "wan2.1_t2v_tiny.safetensors"
    plain, attached = wan.load_dit(base), wan.load_dit(base)
    merged = wan.load_dit(base, transform=merge_transform([(final, 1.0)]))
    attach_lora(attached, final)
    latents, text = torch.randn(1, 16, 2, 4, 4), [torch.randn(3, plain.variant.text_dim)]
    with torch.no_grad():
        one, two, three = (dit(latents, torch.tensor([500.0]), text) for dit in (plain, merged, attached))
    assert not torch.equal(one, two)
    assert (two - three).abs().max() <= 1e-4 * two.abs().max()

    again = train(settings(talking, weights, tmp_path / "b", **lycoris(
        f"algo={algo}", network_weights=final, dim_from_weights=True, network_dim=None, network_alpha=1,
        learning_rate=1e-12, max_train_steps=1)))
    after = load_file(again or "")
    assert tensors.keys() == after.keys()
    assert all(torch.allclose(tensors[key], after[key], atol=1e-7) for key in tensors)


def with_bias(file: Path | None, folder: Path) -> Path:
    """The file with the change of a bias added, as lightx2v's have."""
    tensors = load_file(file or "")
    save_file(tensors | {"lora_unet_blocks_0_ffn_0.diff_b": torch.zeros(3)}, folder / "bias.safetensors")
    return folder / "bias.safetensors"


def test_dora_learns_on_a_float8_base(talking: Path, weights: Path, tmp_path: Path) -> None:
    final = train(settings(talking, weights, tmp_path, **lycoris("algo=dora", fp8_base=True)))
    assert all(tensor.any() for key, tensor in load_file(final or "").items() if "lora_up" in key)


def test_the_same_settings_give_the_same_weights_with_every_dropout(talking: Path, weights: Path, tmp_path: Path
                                                                   ) -> None:
    more = {"network_dropout": 0.2, "network_args": ["rank_dropout=0.2", "module_dropout=0.3"], "max_train_steps": 3}
    first, again = (load_file(train(settings(talking, weights, tmp_path / name, **more)) or "") for name in "ab")
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_ranks_and_rates_by_pattern_are_told(talking: Path, weights: Path, tmp_path: Path) -> None:
    final = train(settings(talking, weights, tmp_path, max_train_steps=1, network_args=[
        "rank_patterns={'ffn': 2, 'self_attn': 6}", "lr_patterns={'ffn': 5e-5}"]))
    assert final is not None
    with safe_open(final, "pt") as file:
        told = file.metadata()
        ranks = {key.partition("blocks_0_")[2].partition(".")[0]: file.get_tensor(key).shape[0]
                 for key in file.keys() if "blocks_0_" in key and "lora_down" in key}  # noqa: SIM118
    assert told["ss_network_dim"] == "Dynamic"
    assert (ranks["ffn_0"], ranks["self_attn_q"], ranks["cross_attn_q"]) == (2, 6, 4)
    assert len(losses(tmp_path)) == 1
    [line] = [json.loads(text)["lr"] for text in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
              if "lr" in json.loads(text)]
    assert line == {"lora": 1e-3, "lora ffn": 5e-5}


def test_what_does_not_fit_together_is_refused(talking: Path, weights: Path, tmp_path: Path) -> None:
    loha = train(settings(talking, weights, tmp_path / "a", **lycoris("algo=loha", max_train_steps=1)))
    lora = train(settings(talking, weights, tmp_path / "b", max_train_steps=1))
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"network_weights": loha}, NetworkFileError, "LoHa at .*, and this network trains LoRA. .*algo=loha"),
        (lycoris("algo=lokr", network_weights=loha), NetworkFileError, "this network trains LoKr"),
        ({"network_weights": lora, "network_args": ["rank_patterns={'ffn': 2}"]}, NetworkFileError,
         "rank 4 at 'blocks_0_ffn_0', the network has 2"),
        ({"network_weights": lora, "dim_from_weights": True, "network_dim": None,
          "network_args": ["rank_patterns={'ffn': 2}"]}, ConfigError, "both set sizes"),
        ({"network_weights": with_bias(lora, tmp_path)}, NetworkFileError, r"directly at .*\(diff_b\).*--base_weights"),
        (lycoris("algo=loha", network_dropout=0.1), ConfigError, "--network_dropout 0.1"),
        ({"network_args": ["lr_patterns={'ffn': 0.5}"], "optimizer_type": "Prodigy"}, ConfigError, "lr_patterns"),
        ({"network_module": "lycoris.kohya"}, ConfigError, "networks.lycoris_wan"),
        ({"network_module": "networks.lokr"}, ConfigError, "algo=lokr"),
    ]
    for more, kind, message in wrong:
        with pytest.raises(kind, match=message):
            train(settings(talking, weights, tmp_path / "c", **more))
    assert not (tmp_path / "c" / "metrics.jsonl").exists()
