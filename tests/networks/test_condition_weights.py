"""Conditions that are trained and saved beside the LoRA."""

import pytest
import torch

from common.errors import NetworkFileError
from networks.condition_weights import recorded_conditions, split_by_condition
from networks.files import save_network
from networks.formats import read_lora
from networks.lora_wan import create_network
from networks.merge import merge_transform
from networks.metadata import ModelSpec, Origin, training_metadata
from tests.networks.toy import toy
from training.optimizers import current_rates
from training.schedules import ScheduleSettings, build_scheduler


@pytest.fixture
def condition():
    from tests.tiny_dit import tiny_variant
    from wan.conditions.registry import build_condition

    return build_condition("omniavatar_add", {"audio_states": "3", "audio_width": "4", "audio_hidden": "8"},
                           tiny_variant())


def test_lora_and_condition_share_one_file(tmp_path, condition):
    network = create_network(toy(), dim=4, conditions={"omniavatar_add": condition})
    with torch.no_grad():
        condition.patch_embedding.weight.normal_()
    origin = Origin(conditions={"omniavatar_add": condition.settings_text()})
    metadata = training_metadata({}, ModelSpec("test"), origin)
    save_network(tmp_path / "a.safetensors", network.state(), metadata)

    file = read_lora(tmp_path / "a.safetensors")
    assert file.layout == "kohya/musubi-tuner"
    assert len(file.entries) == 16
    assert file.others == []
    assert "conditions.omniavatar_add.audio_proj.proj.weight" in file.conditions
    assert recorded_conditions(file.metadata) == {"omniavatar_add": condition.settings_text()}

    fresh = type(condition)(condition.settings, condition.variant)
    again = create_network(toy(), dim=4, conditions={"omniavatar_add": fresh})
    again.load(file)
    assert torch.equal(fresh.patch_embedding.weight, condition.patch_embedding.weight)


def test_conditions_are_trained_in_a_group_of_their_own(condition):
    network = create_network(toy(), dim=4, conditions={"omniavatar_add": condition})
    groups = {group["name"]: group for group in network.parameter_groups(1e-4)}
    assert len(groups["conditions"]["params"]) == len(list(condition.parameters())) - 2
    assert [p is q for p, q in zip(groups["patch embedding"]["params"], condition.patch_embedding.parameters(),
                                   strict=True)] == [True, True]
    assert len(groups["lora"]["params"]) == 32
    assert sum(len(group["params"]) for group in groups.values()) == len(list(network.parameters()))


def test_conditions_learn_at_a_rate_of_their_own_and_the_schedule_moves_both(condition):
    network = create_network(toy(), dim=4, conditions={"omniavatar_add": condition}, args={"condition_lr": "1e-3"})
    optimizer = torch.optim.AdamW(network.parameter_groups(1e-4))
    assert current_rates(optimizer) == {"lora": 1e-4, "conditions": 1e-3, "patch embedding": 1e-3}
    schedule = build_scheduler(optimizer, ScheduleSettings(name="linear", total_steps=4))
    optimizer.step()
    schedule.step()
    assert current_rates(optimizer) == pytest.approx({"lora": 0.75e-4, "conditions": 0.75e-3,
                                                      "patch embedding": 0.75e-3})


def test_the_patch_embedding_learns_at_a_rate_of_its_own(condition):
    network = create_network(toy(), dim=4, conditions={"omniavatar_add": condition}, args={"patch_lr": "1e-5"})
    assert current_rates(torch.optim.AdamW(network.parameter_groups(1e-4))) == {
        "lora": 1e-4, "conditions": 1e-4, "patch embedding": 1e-5}


def test_a_file_of_a_condition_alone_is_fine(tmp_path, condition):
    network = create_network(toy(), dim=4, conditions={"omniavatar_add": condition})
    only = {key: tensor for key, tensor in network.state().items() if key.startswith("conditions.")}
    save_network(tmp_path / "a.safetensors", only, {})
    file = read_lora(tmp_path / "a.safetensors")
    assert list(split_by_condition(file.conditions)) == ["omniavatar_add"]
    report = network.load(file)
    assert report.applied == 0
    merge = merge_transform([(tmp_path / "a.safetensors", 1.0)])
    assert "belong to trained conditions" in merge.reports()[0].text()


def test_a_condition_that_was_not_asked_for_is_refused(tmp_path, condition):
    network = create_network(toy(), dim=4, conditions={"omniavatar_add": condition})
    save_network(tmp_path / "a.safetensors", network.state(), {})
    with pytest.raises(NetworkFileError, match="--network_args conditions=omniavatar_add"):
        create_network(toy(), dim=4).load(read_lora(tmp_path / "a.safetensors"))


def test_other_settings_are_refused(tmp_path, condition):
    from wan.conditions.registry import build_condition

    network = create_network(toy(), dim=4, conditions={"omniavatar_add": condition})
    save_network(tmp_path / "a.safetensors", network.state(), {})
    wider = build_condition("omniavatar_add", {"audio_states": "3", "audio_width": "4", "audio_hidden": "16"},
                            condition.variant)
    with pytest.raises(NetworkFileError, match=r"in the file and .* here. The settings or the base model differ"):
        create_network(toy(), dim=4, conditions={"omniavatar_add": wider}).load(read_lora(tmp_path / "a.safetensors"))


def test_missing_parameters_are_refused(tmp_path, condition):
    network = create_network(toy(), dim=4, conditions={"omniavatar_add": condition})
    tensors = network.state()
    del tensors["conditions.omniavatar_add.audio_proj.proj.bias"]
    save_network(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(NetworkFileError, match="lacks audio_proj.proj.bias"):
        network.load(read_lora(tmp_path / "a.safetensors"))


def test_a_condition_that_the_file_lacks_is_told(tmp_path, condition):
    plain = create_network(toy(), dim=4)
    save_network(tmp_path / "a.safetensors", plain.state(), {})
    network = create_network(toy(), dim=4, conditions={"omniavatar_add": condition})
    assert "condition 'omniavatar_add' is not in the file" in network.load(read_lora(tmp_path / "a.safetensors")).text()
