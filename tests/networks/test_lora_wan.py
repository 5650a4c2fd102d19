"""`--network_args`, and starting from a file."""

import logging

import pytest
import torch

from common.errors import ConfigError, NetworkFileError
from networks.arguments import NetworkArguments
from networks.base import network_module, requested_conditions, split_network_args
from networks.files import save_network
from networks.formats import read_lora
from networks.lora_wan import create_network
from tests.networks.test_lora import trained
from tests.networks.toy import WIDTH, toy


def parse(*pairs):
    return NetworkArguments.parse(split_network_args(pairs))


def test_arguments_are_read():
    arguments = parse("rank_dropout=0.1", "module_dropout=0.2", "loraplus_lr_ratio=4", "verbose=True",
                      "exclude_patterns=['.*']", "include_patterns=['.*self_attn.*', r'.*ffn\\.0']")
    assert arguments == NetworkArguments(0.1, 0.2, 4.0, (".*self_attn.*", r".*ffn\.0"), (".*",), True)


def test_a_value_may_hold_an_equals_sign():
    """musubi-tuner splits at every "=" and crashes."""
    assert parse("exclude_patterns=['.*(?=ffn).*']").exclude_patterns == (".*(?=ffn).*",)
    assert split_network_args(["a=b=c"]) == {"a": "b=c"}


def test_one_bare_pattern_needs_no_list():
    assert parse(r"exclude_patterns=.*ffn\.\d").exclude_patterns == (r".*ffn\.\d",)
    assert parse(r"exclude_patterns=(a|b).*").exclude_patterns == (r"(a|b).*",)


@pytest.mark.parametrize(("pairs", "message"), [
    (["rank_droput=0.1"], "nearest: 'rank_dropout'"),
    (["conv_dim=4"], "no convolutions"),
    (["rank_dropout=1.5"], "a share"),
    (["loraplus_lr_ratio=0"], "above 0"),
    (["condition_lr=0"], "a learning rate, above 0"),
    (["condition_lr=nan"], "a learning rate, above 0"),
    (["patch_lr=-1"], "a learning rate, above 0"),
    (["rank_dropout=much"], "is no number"),
    (["exclude_patterns=['a'"], "is no list"),
    (["exclude_patterns=[1]"], "texts in quotes"),
    (["rank_dropout"], "name=value"),
    (["rank_dropout=0.1", "rank_dropout=0.2"], "given twice"),
    (["omniavatar_add.audio_hidden=32"], "Add conditions=omniavatar_add"),
    (["conditions=omniavatar_add", "omniavatar.audio_hidden=32"], "nearest: 'omniavatar_add'"),
])
def test_wrong_arguments_are_refused(pairs, message):
    with pytest.raises(ConfigError, match=message):
        parse(*pairs)


def test_conditions_are_told_apart_from_arguments():
    arguments = split_network_args(["conditions=omniavatar_add, other", "omniavatar_add.audio_hidden=16",
                                    "rank_dropout=0.1"])
    assert requested_conditions(arguments) == {"omniavatar_add": {"audio_hidden": "16"}, "other": {}}
    assert requested_conditions({}) == {}
    assert NetworkArguments.parse(arguments) == NetworkArguments(rank_dropout=0.1)


def test_network_modules_are_found_by_name():
    import networks.lora_wan

    assert network_module("networks.lora_wan") is networks.lora_wan
    with pytest.raises(ConfigError, match="nearest: 'networks.lora_wan'"):
        network_module("networks.lora_wn")


def test_include_without_exclude_is_told(caplog):
    with caplog.at_level(logging.WARNING):
        network = create_network(toy(), args={"include_patterns": ".*ffn.*"})
    assert len(network.layers) == 16
    assert "alone they change nothing" in caplog.text


def saved(folder, dim=4, alpha=2.0, **options):
    network = trained(create_network(toy(), dim=dim, alpha=alpha, **options))
    save_network(folder / "lora.safetensors", network.state(), {})
    return network, read_lora(folder / "lora.safetensors")


def test_saving_and_loading_gives_the_same_network(tmp_path):
    first, file = saved(tmp_path)
    second = create_network(toy(), dim=4, alpha=2, seed=9)
    report = second.load(file)
    assert (report.applied, report.unused) == (16, [])
    assert all(torch.equal(a, b) for a, b in zip(first.state().values(), second.state().values(), strict=True))


def test_another_alpha_keeps_the_product(tmp_path):
    first, file = saved(tmp_path, alpha=2)
    second = create_network(toy(), dim=4, alpha=4)
    second.load(file)
    x, models = torch.randn(1, 3, WIDTH), []
    for network in (first, second):
        model = toy()
        rebuilt = create_network(model, dim=4, alpha=float(network.layers["blocks.0.ffn.0"].alpha)).attach()
        rebuilt.load_state_dict(network.state_dict())
        models.append(model(x))
    assert torch.allclose(*models, atol=1e-6)


def test_another_rank_is_refused_with_the_remedy(tmp_path):
    _, file = saved(tmp_path)
    with pytest.raises(NetworkFileError, match="rank 4 at .*, the network has 8. Set --network_dim 4"):
        create_network(toy(), dim=8).load(file)


def test_dim_from_weights_takes_layers_ranks_and_alphas(tmp_path):
    first, file = saved(tmp_path, dim=3, alpha=1.5, args={"exclude_patterns": ".*ffn.*"})
    second = create_network(toy(), dim=64, sizes_from=file)
    assert second.load(file).applied == 12
    assert list(second.layers) == list(first.layers)
    assert second.layers["blocks.0.self_attn.q"].rank == 3
    assert float(second.layers["blocks.0.self_attn.q"].alpha) == 1.5


def test_layers_that_the_file_lacks_are_told(tmp_path):
    _, file = saved(tmp_path, args={"exclude_patterns": ".*ffn.*"})
    report = create_network(toy(), dim=4, alpha=2).load(file)
    assert "4 of 16 layers are not in the file and start fresh" in report.text()


def test_a_file_of_another_model_is_refused(tmp_path):
    tensors = {"lora_unet_other.lora_down.weight": torch.zeros(4, 8),
               "lora_unet_other.lora_up.weight": torch.zeros(8, 4)}
    save_network(tmp_path / "a.safetensors", tensors, {})
    with pytest.raises(NetworkFileError, match="none of its modules"):
        create_network(toy(), dim=4).load(read_lora(tmp_path / "a.safetensors"))
