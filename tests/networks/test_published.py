"""Files of OmniAvatar and of MultiTalk: read as they are published, refused in part, written back bit for bit."""

from collections.abc import Callable, Mapping
from dataclasses import replace
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
import torch
from torch import Tensor

from common.errors import NetworkFileError
from networks.condition_weights import load_conditions, recorded_conditions
from networks.files import save_network
from networks.formats import read_lora
from networks.lora_wan import create_network
from networks.merge import LoraMerge
from networks.metadata import ModelSpec, Origin, heard_by, training_metadata
from networks.publish import publish
from tests.tiny_dit import tiny_dit, tiny_variant
import tools.export_network
from wan.conditions.base import Condition
from wan.conditions.registry import build_condition
from wan.modules.dit import WanDiT
from wan.weights.dit import load_dit

TALK = {"audio_states": "13", "audio_width": "768", "audio_hidden": "6", "audio_tokens": "3", "token_width": "8",
        "speakers": "lrope"}


@pytest.fixture(scope="module")
def released(golden: Path) -> dict[str, Tensor]:
    return torch.load(golden / "omniavatar_exp" / "pytorch_model.pt", weights_only=True)


@pytest.fixture(scope="module")
def base_file(golden: Path) -> Path:
    return golden / "omniavatar_base" / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def base(base_file: Path) -> WanDiT:
    return load_dit(base_file)


@pytest.fixture
def write(tmp_path: Path, golden: Path) -> Callable[..., Path]:
    """Write tensors as an OmniAvatar folder."""
    def written(tensors: Mapping[str, Tensor], *, with_config: bool = True) -> Path:
        folder = tmp_path / "exp"
        folder.mkdir(exist_ok=True)
        torch.save(dict(tensors), folder / "pytorch_model.pt")
        if with_config:
            (folder / "config.json").write_bytes((golden / "omniavatar_exp" / "config.json").read_bytes())
        return folder
    return written


def _fill(tensors_file: Path, base: WanDiT) -> dict[str, Condition]:
    file = read_lora(tensors_file).relative_to(base.state_dict().__getitem__)
    built = {name: build_condition(name, settings, base.variant)
             for name, settings in recorded_conditions(file.metadata).items()}
    assert load_conditions(built, file.conditions, file.path) == []
    return built


@pytest.mark.parametrize("prefix", ["", "model.", "dit.", "pipe.dit.", "module.", "module.model."])
@pytest.mark.parametrize("adapter", [".default", ""])
def test_every_spelling_of_a_released_file_is_the_same_file(released: dict[str, Tensor], write: Callable[..., Path],
                                                            golden: Path, prefix: str, adapter: str) -> None:
    renamed = {prefix + key.replace(".default", adapter): tensor for key, tensor in released.items()}
    file, plain = read_lora(write(renamed)), read_lora(golden / "omniavatar_exp")
    assert file.layout == "OmniAvatar" and not file.others
    assert file.conditions.keys() == plain.conditions.keys() and len(file.conditions) == 10
    assert file.entries.keys() == plain.entries.keys() and len(file.entries) == 60
    assert {(entry.rank, entry.scale) for entry in file.entries.values()} == {(8, 0.5)}
    for key, tensor in plain.conditions.items():
        assert torch.equal(file.conditions[key], tensor)


def test_released_sizes_are_recorded_like_our_own(golden: Path) -> None:
    metadata = read_lora(golden / "omniavatar_exp").metadata
    assert recorded_conditions(metadata) == {
        "omniavatar_add": {"audio_hidden": "32", "audio_states": "0", "audio_width": "64"}}
    assert Origin.read(metadata).fps == 25.0  # type: ignore[union-attr]
    assert heard_by(metadata) == {"preset": "omniavatar", "loudness": "as it is"}


def test_the_published_width_is_known_as_wav2vec2_base(write: Callable[..., Path], released: dict[str, Tensor]) -> None:
    file = read_lora(write({**released, "audio_proj.proj.weight": torch.zeros(32, 4 * 10752)}))
    settings = recorded_conditions(file.metadata)["omniavatar_add"]
    assert (settings["audio_states"], settings["audio_width"]) == ("13", "768")


def test_a_released_file_is_merged_and_its_condition_loaded(golden: Path, base: WanDiT, base_file: Path,
                                                            released: dict[str, Tensor]) -> None:
    file = read_lora(golden / "omniavatar_exp")
    merge = LoraMerge([(file, 1.0)])
    merged = load_dit(base_file, transform=merge)
    [report] = merge.reports()
    assert report.applied == 60 and not report.unused and not report.others
    key = "blocks.5.ffn.2"
    delta = 0.5 * released[f"{key}.lora_B.default.weight"].float() @ released[f"{key}.lora_A.default.weight"].float()
    torch.testing.assert_close(merged.get_submodule(key).weight, base.get_submodule(key).weight + delta)
    condition = _fill(golden / "omniavatar_exp", base)["omniavatar_add"]
    widened = released["patch_embedding.weight"].float()
    own = condition.patch_embedding.weight  # type: ignore[union-attr]
    assert torch.equal(own[:, 16:], widened[:, 16:])  # type: ignore[index]
    assert torch.equal(own[:, :16], widened[:, :16] - base.patch_embedding.weight)  # type: ignore[index]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_training_from_a_released_file_and_writing_it_back_gives_the_same_bits(
        golden: Path, base: WanDiT, base_file: Path, released: dict[str, Tensor], tmp_path: Path, suffix: str) -> None:
    start = read_lora(golden / "omniavatar_exp").relative_to(base.state_dict().__getitem__)
    conditions = {name: build_condition(name, settings, base.variant)
                  for name, settings in recorded_conditions(start.metadata).items()}
    network = create_network(base, conditions=conditions, sizes_from=start)
    report = network.load(start)
    assert report.applied == 60 and not report.unused
    metadata = training_metadata({}, ModelSpec("test"), Origin(conditions={"omniavatar_add": conditions[
        "omniavatar_add"].settings_text()}))
    save_network(tmp_path / "ours.safetensors", network.state(), metadata)

    output = tmp_path / f"pytorch_model{suffix}"
    tools.export_network.main([str(tmp_path / "ours.safetensors"), "--dit", str(base_file), "--output", str(output)])
    written = load_file(output) if suffix == ".safetensors" else torch.load(output, weights_only=True)
    assert written.keys() == released.keys()
    for key, tensor in released.items():
        assert written[key].dtype == tensor.dtype and torch.equal(written[key], tensor), key
    ours, theirs = (json.loads((folder / "config.json").read_text())
                    for folder in (tmp_path, golden / "omniavatar_exp"))
    for name in ("lora_rank", "lora_alpha", "train_architecture", "init_lora_weights"):
        assert ours[name] == theirs[name], name
    assert set(ours["lora_target_modules"].split(",")) == set(theirs["lora_target_modules"].split(","))
    assert ours["model_config"] == {"in_dim": 33, "audio_hidden_size": 32}


@pytest.mark.parametrize(("change", "message"), [
    (lambda one: one.pop("audio_cond_projs.1.bias"), "lacks audio_cond_projs.1.bias"),
    (lambda one: one.pop("patch_embedding.bias"), "lacks patch_embedding.bias"),
    (lambda one: one.update({"audio_cond_projs.2.bias": torch.zeros(256)}), "has unknown audio_cond_projs.2.bias"),
    (lambda one: one.update({"face_proj.weight": torch.zeros(2)}), "1 keys that do not belong to it"),
    (lambda one: one.pop("audio_proj.proj.weight"), "lacks 'audio_proj.proj.weight'"),
    (lambda one: one.update({"patch_embedding.weight": torch.zeros(128, 33, 1, 2, 2)}),
     r"patch_embedding.weight is \[128, 33, 1, 2, 2\] beside the base's \[256, 16, 1, 2, 2\]"),
    (lambda one: [one.pop(key) for key in list(one) if key.startswith("blocks.3.ffn.0.")],
     r"without the LoRA of 1 layers \(blocks.3.ffn.0\)"),
    (lambda one: one.pop("blocks.0.ffn.0.lora_A.default.weight"), "its other half is missing"),
])
def test_a_file_in_part_is_refused(released: dict[str, Tensor], write: Callable[..., Path], base: WanDiT,
                                   change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    tensors = dict(released)
    change(tensors)
    with pytest.raises(NetworkFileError, match=message):
        _fill(write(tensors), base)


def test_a_file_of_which_nothing_fits_is_refused(released: dict[str, Tensor], write: Callable[..., Path]) -> None:
    with pytest.raises(NetworkFileError, match="no LoRA in it"):
        read_lora(write({f"other/{key}".replace("lora", "l"): tensor for key, tensor in released.items()}))


def test_without_settings_beside_it_the_published_alpha_holds_for_the_published_rank_alone(
        tmp_path: Path, released: dict[str, Tensor]) -> None:
    tensors = {key: tensor for key, tensor in released.items() if "lora" not in key}
    for rank in (128, 64):
        tensors["blocks.0.self_attn.q.lora_A.default.weight"] = torch.zeros(rank, 256)
        tensors["blocks.0.self_attn.q.lora_B.default.weight"] = torch.zeros(256, rank)
        torch.save(dict(tensors), tmp_path / "pytorch_model.pt")
        if rank == 128:
            file = read_lora(tmp_path / "pytorch_model.pt")
            assert file.entries["blocks.0.self_attn.q"].scale == 0.5
            assert "alpha 64 for rank 128, as published" in file.notes[0]
        else:
            with pytest.raises(NetworkFileError, match="rank 64 keeps lora_alpha in the config.json"):
                read_lora(tmp_path / "pytorch_model.pt")


def test_the_settings_of_another_file_are_refused(released: dict[str, Tensor], write: Callable[..., Path]) -> None:
    folder = write(released)
    assert read_lora(folder).notes == ["rank 8, alpha 4 (config.json)"]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "lora_rank": 16}))
    with pytest.raises(NetworkFileError, match="pairs of rank 8, and the config.json beside it tells of rank 16"):
        read_lora(folder)


def _multitalk() -> tuple[Condition, dict[str, Tensor]]:
    """A condition of a tiny model and its parameters as MultiTalk would publish them."""
    torch.manual_seed(4)
    condition = build_condition("frame_xattn", TALK, tiny_variant())
    for parameter in condition.parameters():
        torch.nn.init.normal_(parameter)
    return condition, {key: tensor.bfloat16() for key, tensor in condition.state_dict().items()}


def test_a_multitalk_file_is_read_and_written_back_bit_for_bit(tmp_path: Path) -> None:
    condition, published = _multitalk()
    save_file(published, tmp_path / "multitalk.safetensors")
    metadata = read_lora(tmp_path / "multitalk.safetensors").metadata
    assert heard_by(metadata) == {"preset": "multitalk", "loudness": "-23 LUFS"}
    dit = tiny_dit()
    [read] = _fill(tmp_path / "multitalk.safetensors", dit).values()
    assert read.settings == condition.settings
    for key, tensor in read.state_dict().items():
        assert torch.equal(tensor, published[key].float()), key

    network = create_network(dit, dim=2, conditions={"frame_xattn": read})
    ours = {key: tensor for key, tensor in network.state().items() if key.startswith("conditions.")}
    origin = Origin(conditions={"frame_xattn": read.settings_text()})
    save_network(tmp_path / "ours.safetensors", ours, origin.text())
    again = publish(read_lora(tmp_path / "ours.safetensors"), [], dit.state_dict().__getitem__, torch.bfloat16)
    assert again.form.layout == "MultiTalk/InfiniteTalk" and not again.config
    assert again.tensors.keys() == published.keys()
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in published.items())

    for options, found in (({"preset": "omniavatar"}, "preset 'omniavatar'"), ({"dtype": "float32"}, "preset 'omni"),
                           ({"preset": "multitalk", "loudness": "as it is"}, "loudness 'as it is'")):
        heard = replace(origin, encoders={"audio": {"options": options}})
        save_network(tmp_path / "heard.safetensors", ours, heard.text())
        with pytest.raises(NetworkFileError, match=f"was trained on sound with {found}.*--audio_preset multitalk"):
            publish(read_lora(tmp_path / "heard.safetensors"), [], dit.state_dict().__getitem__, torch.bfloat16)

    save_network(tmp_path / "both.safetensors", network.state(), origin.text())
    with pytest.raises(NetworkFileError, match="holds a LoRA beside the condition"):
        publish(read_lora(tmp_path / "both.safetensors"), [], dit.state_dict().__getitem__, torch.bfloat16)


@pytest.mark.parametrize(("change", "message"), [
    (lambda one: one.pop("blocks.2.norm_x.bias"), "lacks blocks.2.norm_x.bias"),
    (lambda one: one.update({"blocks.4.norm_x.bias": torch.zeros(32)}), "has unknown blocks.4.norm_x.bias"),
    (lambda one: one.update({"blocks.0.ffn.0.weight": torch.zeros(2)}), "1 keys that do not belong to it"),
    (lambda one: one.pop("audio_proj.norm.weight"), "lacks 'audio_proj.norm.weight'"),
])
def test_a_multitalk_file_in_part_is_refused(tmp_path: Path, change: Callable[[dict[str, Tensor]], object],
                                             message: str) -> None:
    _, published = _multitalk()
    change(published)
    save_file(published, tmp_path / "multitalk.safetensors")
    with pytest.raises(NetworkFileError, match=message):
        _fill(tmp_path / "multitalk.safetensors", tiny_dit())


def test_a_condition_of_no_other_project_has_no_form_to_be_written_in(tmp_path: Path) -> None:
    condition = build_condition("gated_lite", {"audio_states": "3", "audio_width": "4"}, tiny_variant())
    network = create_network(tiny_dit(), dim=2, conditions={"gated_lite": condition})
    save_network(tmp_path / "a.safetensors", network.state(), {})
    with pytest.raises(NetworkFileError, match="holds gated_lite; only a file with one of omniavatar_add, frame_xattn"):
        publish(read_lora(tmp_path / "a.safetensors"), [], tiny_dit().state_dict().__getitem__, torch.bfloat16)
