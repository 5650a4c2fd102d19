"""Each audio design is trained by its name, and goes on from its own file or from one of OmniAvatar's form."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
import torch

from common.errors import ConditionError
from tests.training.test_build import prepare_data, settings
from tools.export_network import main as export
from training import train

SMALL = ["frame_xattn.audio_hidden=16", "frame_xattn.audio_tokens=3", "frame_xattn.token_width=32"]


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory, root: Path, tiny_weights: Path) -> Path:
    """Dataset with latents, text, sound and reference latents."""
    torch.set_num_threads(1)
    return prepare_data(tmp_path_factory.mktemp("talking"), root, tiny_weights, ["latents", "text", "audio"])


@pytest.mark.parametrize("name", ["frame_xattn", "gated_lite"])
def test_a_design_is_trained_beside_a_picture_and_recorded(name: str, talking: Path, tiny_weights: Path,
                                                           tmp_path: Path) -> None:
    args = [f"conditions={name},reference_channels", *(SMALL if name == "frame_xattn" else [])]
    final = train(settings(talking, tiny_weights, tmp_path, network_args=args, gradient_checkpointing=True))
    assert final is not None
    with safe_open(final, "pt") as file:
        told = json.loads(file.metadata()["omnituner.conditions"])
    assert set(told) == {name, "reference_channels"}
    assert (told[name]["audio_states"], told[name]["audio_width"], told[name]["null"]) == ("3", "32", "zeros")
    tensors = load_file(final)
    zero = {"frame_xattn": "blocks.0.audio_cross_attn.proj.weight", "gated_lite": "attentions.0.o.weight"}[name]
    assert tensors[f"conditions.{name}.{zero}"].abs().max() > 0
    assert tensors["conditions.reference_channels.patch_embedding.weight"].abs().max() > 0
    again = train(settings(talking, tiny_weights, tmp_path / "b", network_weights=final, network_dim=None,
                           network_alpha=1, dim_from_weights=True, learning_rate=1e-12))
    after = load_file(again or "")
    assert tensors.keys() == after.keys()
    assert all(torch.allclose(tensors[key], after[key], atol=1e-7) for key in tensors)


def test_training_goes_on_from_a_file_of_omniavatars_form(talking: Path, tiny_weights: Path, tmp_path: Path) -> None:
    dit = tiny_weights / "wan2.1_t2v_tiny.safetensors"
    start = train(settings(talking, tiny_weights, tmp_path / "a", network_args=["conditions=omniavatar_add"]))
    released = tmp_path / "released" / "pytorch_model.pt"
    released.parent.mkdir()
    export([str(start), "--dit", str(dit), "--output", str(released), "--dtype", "float32"])
    again = train(settings(talking, tiny_weights, tmp_path / "b", network_weights=released.parent, network_dim=None,
                           network_alpha=1, dim_from_weights=True, learning_rate=1e-12))
    before, after = load_file(start or ""), load_file(again or "")
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        torch.testing.assert_close(after[key], tensor, atol=1e-6, rtol=1e-5, msg=key)


def test_two_designs_at_once_are_refused(talking: Path, tiny_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConditionError, match="gated_lite and omniavatar_add both hear the sound"):
        train(settings(talking, tiny_weights, tmp_path, network_args=["conditions=gated_lite,omniavatar_add"]))
