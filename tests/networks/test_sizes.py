"""Ranks, alphas and learning rates by pattern."""

import pytest
import torch

from common.errors import ConfigError
from networks.base import split_network_args
from networks.files import save_network
from networks.formats import read_lora
from networks.lora_wan import check_arguments, create_network, plan
from networks.merge import merge_transform
from tests.networks.test_lora import tokens, trained
from tests.networks.toy import toy

PATTERNS = (r"rank_patterns={'self_attn\\.(q|k)': 6, 'attn': 2}", "alpha_patterns={'ffn': 8, 'self_attn': 3}")


def sizes(network):
    return {path: (layer.rank, float(layer.alpha)) for path, layer in network.layers.items()}


def made(*pairs, **more):
    return create_network(toy(), dim=4, alpha=1.0, args=split_network_args(pairs), **more)


def test_the_first_match_decides_and_the_rest_has_the_networks_own():
    found = sizes(made(*PATTERNS))
    for block in (0, 1):
        assert {path.removeprefix(f"blocks.{block}."): size for path, size in found.items()
                if path.startswith(f"blocks.{block}")} == {
            "self_attn.q": (6, 3), "self_attn.k": (6, 3), "self_attn.v": (2, 3), "self_attn.o": (2, 3),
            "cross_attn.q": (2, 1), "cross_attn.k_img": (2, 1), "ffn.0": (4, 8), "ffn.2": (4, 8)}


def test_alpha_zero_is_the_layers_own_rank():
    network = create_network(toy(), dim=4, alpha=0, args={"rank_patterns": "{'ffn': 2}"})
    assert {layer.scale for layer in network.layers.values()} == {1.0}
    assert sizes(network)["blocks.0.ffn.0"] == (2, 2.0)


def test_files_with_several_ranks_are_gone_on_from_attached_and_merged(tmp_path):
    first = trained(made(*PATTERNS))
    save_network(tmp_path / "a.safetensors", first.state(), {})
    file = read_lora(tmp_path / "a.safetensors")
    for second in (made(*PATTERNS, seed=3), create_network(toy(), sizes_from=file)):
        assert second.load(file).applied == 16
        assert sizes(second) == sizes(first)
        assert all(torch.equal(tensor, second.state()[key]) for key, tensor in first.state().items())
    merged, attached = toy(), toy()
    merge = merge_transform([(tmp_path / "a.safetensors", 1.0)])
    merged.load_state_dict({name: merge(name, value) for name, value in merged.state_dict().items()})
    trained(create_network(attached, dim=4, alpha=1.0, args=split_network_args(PATTERNS))).attach()
    assert torch.allclose(attached(tokens()), merged(tokens()), atol=1e-5)


def test_what_will_be_made_is_known_before_it_is_made():
    planned = plan(toy(), split_network_args(PATTERNS), 4)
    assert planned.kind == "LoRA"
    assert planned.ranks == {path: rank for path, (rank, _) in sizes(made(*PATTERNS)).items()}


@pytest.mark.parametrize(("pair", "message"), [
    ("rank_patterns={'fnn': 8}", r"'fnn' is found in none of the 16 trained layers \(nearest: 'ffn'\)"),
    ("rank_patterns={'self_attn.p': 8}", "nearest: 'self_attn.[qkvo]'"),
    ("lr_patterns={'attn': 1e-4, 'self_attn': 1e-5}", "'self_attn' decides nothing"),
    ("rank_patterns={'ffn': 0}", "a rank is a whole number"),
    ("rank_patterns={'ffn': 1.5}", "a rank is a whole number"),
    ("rank_patterns={'ffn': True}", "a rank is a whole number"),
    ("alpha_patterns={'ffn': -1}", "a number above 0"),
    ("lr_patterns={'ffn': 'fast'}", "a number above 0"),
    ("lr_patterns={'(ffn': 1e-4}", "is no regular expression"),
    ("rank_patterns=ffn:8", r"Write rank_patterns=.\{'ffn': 16, 'self_attn': 64\}"),
    ("rank_patterns={}", "is no dict"),
    ("lr_patterns=['ffn']", "is no dict"),
])
def test_wrong_patterns_are_refused(pair, message):
    for refuse in (lambda: made(pair), lambda: check_arguments(toy(), split_network_args([pair]))):
        with pytest.raises(ConfigError, match=message):
            refuse()


def test_a_pattern_of_layers_that_were_left_out_is_idle():
    with pytest.raises(ConfigError, match="found in none of the 12"):
        made("exclude_patterns=.*ffn.*", "rank_patterns={'ffn': 8}")


def test_sizes_of_a_file_and_of_patterns_exclude_each_other(tmp_path):
    save_network(tmp_path / "a.safetensors", trained(made()).state(), {})
    with pytest.raises(ConfigError, match="both set sizes"):
        made("rank_patterns={'ffn': 8}", sizes_from=read_lora(tmp_path / "a.safetensors"))


def test_learning_rates_by_pattern_are_groups_of_their_own():
    network = made(r"lr_patterns={'ffn': 0.25, 'self_attn\\.v': 0.5}", "loraplus_lr_ratio=4")
    groups = {group["name"]: group for group in network.parameter_groups(0.125)}
    assert {name: (group["lr"], len(group["params"])) for name, group in groups.items()} == {
        "lora": (0.125, 10), "lora plus": (0.5, 10), "lora ffn": (0.25, 4), "lora plus ffn": (1.0, 4),
        r"lora self_attn\.v": (0.5, 2), r"lora plus self_attn\.v": (2.0, 2)}
    together = [parameter for group in groups.values() for parameter in group["params"]]
    assert len({id(one) for one in together}) == len(together) == len([*network.parameters()])
    ups = {id(layer.lora_up.weight) for layer in network.layers.values()}
    assert {id(one) for one in groups["lora plus ffn"]["params"]} <= ups


def test_without_patterns_the_groups_are_as_they_were():
    [group] = made().parameter_groups(1e-3)
    assert (group["name"], len(group["params"])) == ("lora", 32)
