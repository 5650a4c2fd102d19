"""DoRA, LoHa and LoKr as trained layers."""

import logging
from pathlib import Path

import pytest
from safetensors.torch import load_file
import torch
from torch.utils.checkpoint import checkpoint

from common.errors import ConfigError, NetworkFileError
from networks.base import network_module
from networks.files import save_network
from networks.formats import read_lora
from networks.lora_wan import create_network as create_lora
from networks.lycoris import lokr_shapes, split_size
from networks.lycoris_wan import create_network
from networks.merge import merge_transform
from tests.networks.test_lora import tokens
from tests.networks.toy import WIDTH, toy
from wan.memory.fp8 import Fp8Linear

KINDS = ({"algo": "dora"}, {"algo": "loha"}, {"algo": "lokr"},
         {"algo": "lokr", "factor": "2", "decompose_both": "true"}, {"algo": "lokr", "full_matrix": "true"},
         {"algo": "locon"})
kinds = pytest.mark.parametrize("args", KINDS, ids=lambda args: " ".join(args.values()))


def create(model, args, dim=3, alpha=2.0, **more):
    return create_network(model, dim=dim, alpha=alpha, args=args, **more)


def trained(network, seed=1):
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.1)
    return network


def changes(network, folder):
    """{path: what merging the saved network adds to the toy's weight}: the closed forms of `networks.deltas`."""
    save_network(folder / "saved.safetensors", network.state(), {})
    weights = {f"{path}.weight": toy().get_parameter(f"{path}.weight") for path in network.layers}
    merge = merge_transform([(folder / "saved.safetensors", 1.0)], list(weights))
    return {name.removesuffix(".weight"): merge(name, weight) - weight for name, weight in weights.items()}


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_network_leaves_the_output_bit_equal(args, dtype):
    model = toy().to(dtype)
    before = model(tokens().to(dtype))
    network = create(model, args, seed=4).attach().train()
    assert torch.equal(model(tokens().to(dtype)), before)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@kinds
def test_the_layer_computes_what_merging_would(args, tmp_path):
    model = toy()
    network = trained(create(model, args)).attach()
    for path, change in changes(network, tmp_path).items():
        layer = model.get_submodule(path)
        x = torch.randn(2, 5, layer.in_features)
        with network.enabled(False):
            plain = layer(x)
        assert (layer(x) - plain - x @ change.T).abs().max() <= 2e-5
        network.multiplier = -0.5
        assert (layer(x) - plain + 0.5 * x @ change.T).abs().max() <= 2e-5
        network.multiplier = 1.0


def weight_of(layer, base):
    """The changed weight by the plain formula, with its graph."""
    own = dict(layer.named_parameters())
    if layer.kind == "LoHa":
        product = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"])
    elif layer.kind == "LoKr":
        first, second = (own[half] if half in own else own[f"{half}_a"] @ own[f"{half}_b"]
                         for half in ("lokr_w1", "lokr_w2"))
        product = torch.kron(first, second)
    else:
        product = own["lora_up.weight"] @ own["lora_down.weight"]
    weight = base.weight + layer.scale * product
    return weight if layer.kind != "DoRA" else weight * own["dora_scale"] / weight.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("path", ["blocks.0.ffn.0", "blocks.0.self_attn.q"])  # LoHa of rank 3: as rank 9, and whole
@kinds
def test_gradients_are_those_of_the_plain_formula(args, path):
    model = toy()
    network = trained(create(model, args)).attach()
    layer, base = network.layers[path], model.get_submodule(path)
    x = torch.randn(4, 5, WIDTH, requires_grad=True)
    push = torch.randn(4, 5, base.out_features)
    leaves = [x, *layer.parameters()]
    ours = torch.autograd.grad((base(x) * push).sum(), leaves)
    theirs = torch.autograd.grad(((x @ weight_of(layer, base).T + base.bias) * push).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 2e-5 * other.abs().max()


@kinds
def test_it_learns_and_the_base_does_not(args):
    model = toy()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = create(model, args, dim=4, alpha=4).attach().train()
    target = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(network.parameter_groups(1e-2))
    losses = []
    for _ in range(30):
        loss = ((model(tokens()) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    network.detach()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@kinds
def test_checkpointing_repeats_what_was_dropped(args):
    gradients = []
    for use_checkpoint in (False, True):
        model = toy()
        network = trained(create(model, {**args, "module_dropout": "0.3"})).attach().train()
        torch.manual_seed(11)
        x = tokens().requires_grad_()
        for block in model.blocks:
            x = checkpoint(block, x, use_reentrant=False) if use_checkpoint else block(x)
        x.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    assert 10 < len(gradients[0]) < len([*network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@kinds
def test_float8_bases_are_turned_as_what_they_stand_for(args, tmp_path):
    plain, stored = toy(), toy()
    base = plain.get_submodule("blocks.0.ffn.0")
    quantised = Fp8Linear(base.in_features, base.out_features)
    quantised.store(base.weight.detach())
    quantised.bias = torch.nn.Parameter(base.bias.detach().clone(), requires_grad=False)
    stored.set_submodule("blocks.0.ffn.0", quantised)
    with torch.no_grad():
        base.weight.copy_(quantised.dequantised_weight(torch.float32))
    x = torch.randn(2, 5, base.in_features)
    before = quantised(x)
    networks = [create(model, {**args, "exclude_patterns": ".*attn.*"}).attach() for model in (plain, stored)]
    assert torch.equal(quantised(x), before)
    for network in networks:
        trained(network)
    assert torch.allclose(quantised(x), base(x), atol=1e-5)
    quantised(x).square().mean().backward()
    assert all(one.grad is not None for one in networks[1].layers["blocks.0.ffn.0"].parameters())


@pytest.mark.parametrize("args", [{"algo": "dora"}, {"algo": "loha"}, {"algo": "lokr"}])
def test_a_small_change_beside_a_bfloat16_base_is_not_rounded_away(args):
    """W + D in bfloat16 is W where D is a thousandth of it; LyCORIS computes (W + D) - W there."""
    model = toy().bfloat16()
    network = trained(create(model, args)).attach()
    with torch.no_grad():
        for layer in network.layers.values():
            layer.shrink(torch.tensor(1e-2))
            if layer.kind == "DoRA":
                layer.dora_scale.copy_(layer.squares.sqrt()[:, None])
    layer, base = network.layers["blocks.0.ffn.0"], model.get_submodule("blocks.0.ffn.0")
    x = torch.randn(4, 5, WIDTH).bfloat16()
    expected = x.float() @ (weight_of(layer, base.float()) - base.weight.float()).T
    base.bfloat16()
    with network.enabled(False):
        plain = base(x).float()  # in float32, so that the sum does not round what is to be seen
    found = layer.added(x, plain) - plain
    assert (found - expected).norm() <= 0.02 * expected.norm()
    turned = (base.weight + (weight_of(layer, base).bfloat16() - base.weight)) - base.weight
    assert (x.float() @ turned.float().T - expected).norm() > 0.2 * expected.norm(), "nothing is rounded away here"


@kinds
def test_norm_limit_is_that_of_the_change(args, tmp_path):
    network = trained(create(toy(), args))
    products = {path: weight_of_change(layer) for path, layer in network.layers.items()}
    norms = {path: product.norm().item() for path, product in products.items()}
    limit = sum(sorted(norms.values())[7:9]) / 2
    report = network.limit_norms(limit)
    assert report.scaled == 8
    assert report.largest == pytest.approx(limit, rel=1e-4)
    for path, layer in network.layers.items():
        assert torch.allclose(weight_of_change(layer), products[path] * min(1, limit / norms[path]), atol=1e-6)


@torch.no_grad()
def weight_of_change(layer):
    """s · D, without DoRA's lengths."""
    empty = torch.nn.Linear(layer._base[0].in_features, layer._base[0].out_features)
    torch.nn.init.zeros_(empty.weight)
    if layer.kind == "DoRA":
        return layer.lora_up.weight @ layer.lora_down.weight * layer.scale
    return weight_of(layer, empty)


@kinds
def test_saving_and_loading_gives_the_same_network(args, tmp_path):
    first = trained(create(toy(), args))
    save_network(tmp_path / "a.safetensors", first.state(), {})
    file = read_lora(tmp_path / "a.safetensors")
    for second in (create(toy(), args, seed=9), create(toy(), {"algo": args["algo"]}, dim=64, sizes_from=file)):
        report = second.load(file)
        assert (report.applied, report.unused) == (16, [])
        theirs = second.state()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in first.state().items())


@kinds
def test_another_alpha_keeps_the_change(args, tmp_path):
    first = trained(create(toy(), args))
    save_network(tmp_path / "a.safetensors", first.state(), {})
    second = create(toy(), args, alpha=6.0)
    second.load(read_lora(tmp_path / "a.safetensors"))
    for path, layer in first.layers.items():
        assert torch.allclose(weight_of_change(layer), weight_of_change(second.layers[path]), atol=1e-6)


def test_keys_are_those_of_lycoris():
    golden = load_file(Path(__file__).parents[1] / "data" / "lycoris.safetensors")
    for case, args, dim in (("loha", {"algo": "loha"}, 4), ("lokr both", {"algo": "lokr", "decompose_both": "1"}, 1),
                            ("lokr factor", {"algo": "lokr", "factor": "4"}, 2), ("dora rows", {"algo": "dora"}, 4)):
        theirs = {key.rpartition("ffn_0.")[2] for key in golden if key.startswith(f"{case}/lora_unet")}
        ours = {key.rpartition("ffn_0.")[2] for key in create(toy(), args, dim=dim).state() if "blocks_0_ffn_0" in key}
        assert ours == theirs


def test_sizes_are_split_as_lycoris_splits_them():
    golden = load_file(Path(__file__).parents[1] / "data" / "lycoris.safetensors")
    for size, factor, small, large in golden["sizes"].tolist():
        assert split_size(size, factor) == (small, large), (size, factor)


def test_a_half_is_whole_where_a_pair_saves_nothing():
    base = torch.nn.Linear(24, 40)
    assert lokr_shapes(base, 2) == {"lokr_w1": (5, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 6)}
    assert lokr_shapes(base, 4) == {"lokr_w1": (5, 4), "lokr_w2": (8, 6)}
    assert lokr_shapes(base, 2, full_matrix=True) == {"lokr_w1": (5, 4), "lokr_w2": (8, 6)}
    network = create(toy(), {"algo": "lokr"}, dim=8, alpha=1.0)
    assert {layer.scale for layer in network.layers.values()} == {1.0}
    assert {float(layer.alpha) for layer in network.layers.values()} == {8.0}


def test_initial_weights_depend_on_seed_and_path_alone():
    for args in KINDS:
        first, again = create(toy(), args, seed=5), create(toy(), {**args, "exclude_patterns": ".*ffn.*"}, seed=5)
        theirs = first.state()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in again.state().items())


def test_conditions_and_rates_stand_beside_any_kind():
    condition = torch.nn.ModuleDict({"proj": torch.nn.Linear(2, 2)})
    network = create(toy(), {"algo": "lokr", "condition_lr": "0.5", "lr_patterns": "{'ffn': 0.25}"},
                     conditions={"own": condition})
    groups = {group["name"]: group for group in network.parameter_groups(0.125)}
    assert {name: group["lr"] for name, group in groups.items()} == {"lora": 0.125, "lora ffn": 0.25, "conditions": 0.5}
    assert "conditions.own.proj.weight" in network.state()


def test_another_kind_in_the_file_is_refused_with_the_remedy(tmp_path):
    save_network(tmp_path / "a.safetensors", trained(create(toy(), {"algo": "loha"})).state(), {})
    file = read_lora(tmp_path / "a.safetensors")
    for make in (lambda: create_lora(toy(), dim=3).load(file), lambda: create_lora(toy(), sizes_from=file),
                 lambda: create(toy(), {"algo": "dora"}).load(file)):
        with pytest.raises(NetworkFileError, match="LoHa.*algo=loha"):
            make()


@pytest.mark.parametrize(("args", "dropout", "message"), [
    ({}, None, r"needs algo=loha\|lokr\|dora"),
    ({"algo": "lokt"}, None, "nearest: 'lokr'"),
    ({"algo": "boft"}, None, "not offered"),
    ({"algo": "loha", "factor": "4"}, None, "factor belongs to algo=lokr"),
    ({"algo": "lokr", "factor": "0"}, None, "above 0, or -1"),
    ({"algo": "lokr", "factor": "2.5"}, None, "above 0, or -1"),
    ({"algo": "lokr", "rank_dropout": "0.1"}, None, "module_dropout works"),
    ({"algo": "loha", "loraplus_lr_ratio": "4"}, None, "LoRA's two matrices"),
    ({"algo": "loha", "dora_wd": "True"}, None, "algo=dora"),
    ({"algo": "lokr", "conv_dim": "4"}, None, "no convolutions"),
    ({"algo": "lokr", "preset": "full"}, None, "unknown 'preset'"),
    ({"algo": "loha"}, 0.1, "--network_dropout 0.1"),
])
def test_wrong_arguments_are_refused(args, dropout, message):
    from networks.lycoris_wan import check_arguments

    with pytest.raises(ConfigError, match=message):
        create_network(toy(), args=args, dropout=dropout)
    with pytest.raises(ConfigError, match=message):
        check_arguments(toy(), args, dropout)


def test_lycoris_own_names_are_understood(caplog):
    with caplog.at_level(logging.INFO):
        network = create(toy(), {"algo": "LoRA", "dora_wd": "True"})
    assert "DoRA on 16 linear layers" in caplog.text
    assert {layer.kind for layer in network.layers.values()} == {"DoRA"}


@pytest.mark.parametrize("name", ["networks.loha", "networks.lokr", "lycoris.kohya"])
def test_musubis_modules_are_answered(name):
    with pytest.raises(ConfigError, match="networks.lycoris_wan --network_args algo="):
        network_module(name)
