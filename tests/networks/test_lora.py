"""The LoRA layer and the network of them."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from networks.layer import Dropouts
from networks.lora import LoraNetwork
from networks.lora_wan import create_network
from tests.networks.toy import WIDTH, toy


def trained(network, seed=1):
    """Give every `up` weights, as if trained."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in network.layers.values():
            layer.lora_up.weight.copy_(torch.randn(layer.lora_up.weight.shape, generator=source) * 0.1)
    return network


def tokens(seed=3):
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fresh_lora_leaves_the_output_bit_equal(dtype):
    model = toy().to(dtype)
    before = model(tokens().to(dtype))
    create_network(model, dim=4).attach()
    assert torch.equal(model(tokens().to(dtype)), before)


def test_one_dimensional_input_is_no_trouble():
    base = torch.nn.Linear(6, 8)
    network = LoraNetwork({"layer": base}, sizes={"layer": (3, 3.0)})
    network.reset(0)
    trained(network).attach()
    x = torch.randn(6)
    assert torch.allclose(base(x), base(x[None])[0], atol=1e-6)


def test_layer_computes_the_formula():
    base = torch.nn.Linear(6, 8)
    plain = torch.nn.Linear(6, 8)
    plain.load_state_dict(base.state_dict())
    network = LoraNetwork({"layer": base}, sizes={"layer": (3, 1.5)})
    network.reset(0)
    trained(network).attach()
    network.multiplier = -0.75
    layer, x = network.layers["layer"], torch.randn(4, 6)
    delta = layer.lora_up.weight @ layer.lora_down.weight
    expected = plain(x) - 0.75 * (1.5 / 3) * x @ delta.T
    assert torch.allclose(base(x), expected, atol=1e-6)


def test_alpha_defaults_to_one_and_zero_means_rank():
    assert create_network(toy(), dim=8).layers["blocks.0.ffn.0"].scale == 1 / 8
    assert create_network(toy(), dim=8, alpha=0).layers["blocks.0.ffn.0"].scale == 1
    assert create_network(toy()).layers["blocks.0.ffn.0"].rank == 4


def test_initial_weights_depend_on_seed_and_path_alone():
    first = create_network(toy(), dim=4, seed=5)
    torch.manual_seed(99)
    second = create_network(toy(), dim=4, seed=5, args={"exclude_patterns": ".*ffn.*"})
    path = "blocks.1.self_attn.q"
    assert torch.equal(first.layers[path].lora_down.weight, second.layers[path].lora_down.weight)
    other = create_network(toy(), dim=4, seed=6)
    assert not torch.equal(first.layers[path].lora_down.weight, other.layers[path].lora_down.weight)
    weight = first.layers[path].lora_down.weight
    assert weight.abs().max() <= 1 / WIDTH**0.5
    assert not torch.equal(weight, first.layers["blocks.0.self_attn.q"].lora_down.weight)


def test_switching_off_and_detaching_give_the_base_back():
    model = toy()
    before = model(tokens())
    network = trained(create_network(model, dim=4)).attach()
    changed = model(tokens())
    assert not torch.allclose(changed, before)
    with network.enabled(False):
        assert torch.equal(model(tokens()), before)
        with network.enabled(True):
            assert torch.equal(model(tokens()), changed)
    assert torch.equal(model(tokens()), changed)
    network.detach()
    assert torch.equal(model(tokens()), before)
    assert all("forward" not in vars(module) for module in model.modules())


def test_two_networks_add_up_and_come_off_in_order():
    model = toy()
    before = model(tokens())
    first = trained(create_network(model, dim=4, alpha=4), 1).attach()
    alone = model(tokens())
    second = trained(create_network(model, dim=2, alpha=2), 2).attach()
    assert not torch.allclose(model(tokens()), alone)
    second.detach()
    assert torch.equal(model(tokens()), alone)
    first.detach()
    assert torch.equal(model(tokens()), before)


def test_half_precision_input_gives_half_precision_output_from_float32_weights():
    model = toy().bfloat16()
    network = trained(create_network(model, dim=4)).attach()
    out = model(tokens().bfloat16())
    assert out.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    out.float().square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32
               for parameter in network.parameters())


def test_only_the_network_is_trained():
    model = toy()
    network = create_network(model, dim=4, alpha=4).attach()
    target = torch.randn(2, 5, WIDTH)
    optimizer = torch.optim.AdamW(network.parameter_groups(1e-2))
    losses = []
    for _ in range(30):
        loss = ((model(tokens()) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_checkpointing_gives_the_same_gradients_with_dropout():
    gradients = []
    for use_checkpoint in (False, True):
        model = toy()
        network = trained(create_network(model, dim=4, dropout=0.3, args={"rank_dropout": "0.2",
                                                                          "module_dropout": "0.2"})).attach().train()
        torch.manual_seed(11)
        x = tokens().requires_grad_()
        for block in model.blocks:
            x = checkpoint(block, x, use_reentrant=False) if use_checkpoint else block(x)
        x.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    assert len(gradients[0]) > 10
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("dropouts", [Dropouts(activation=0.5), Dropouts(rank=0.5)])
def test_dropouts_keep_the_mean_and_act_in_training_alone(dropouts):
    base = torch.nn.Linear(6, 8)
    network = LoraNetwork({"layer": base}, sizes={"layer": (4, 4.0)}, dropouts=dropouts)
    network.reset(0)
    trained(network).attach()
    x = torch.randn(1, 1, 6).expand(20_000, 1, 6)
    network.eval()
    steady = base(x)
    assert torch.allclose(steady[0], steady[1], atol=1e-6)
    network.train()
    torch.manual_seed(0)
    noisy = base(x)
    assert not torch.allclose(noisy[0], noisy[1], atol=1e-6)
    assert torch.allclose(noisy.mean(0), steady[0], atol=0.02)


def test_module_dropout_leaves_whole_layers_out():
    base = torch.nn.Linear(6, 8)
    network = LoraNetwork({"layer": base}, sizes={"layer": (4, 4.0)}, dropouts=Dropouts(module=0.3))
    network.reset(0)
    trained(network).attach().train()
    x, plain = torch.randn(1, 6), None
    with network.enabled(False):
        plain = base(x)
    torch.manual_seed(0)
    left_out = sum(torch.equal(base(x), plain) for _ in range(2000))
    assert 540 < left_out < 660


def test_lora_plus_learns_faster_in_the_up_matrices():
    network = create_network(toy(), dim=4, args={"loraplus_lr_ratio": "4"})
    groups = {group["name"]: group for group in network.parameter_groups(1e-3)}
    assert groups["lora"]["lr"] == 1e-3
    assert groups["lora plus"]["lr"] == 4e-3
    assert {tuple(weight.shape)[1] for weight in groups["lora plus"]["params"]} == {4}
    assert len(groups["lora"]["params"]) == len(groups["lora plus"]["params"]) == 16


def test_state_has_the_keys_of_musubi_files():
    network = create_network(toy(), dim=4, alpha=2)
    state = network.state(torch.bfloat16)
    assert len(state) == 3 * 16
    key = "lora_unet_blocks_0_cross_attn_k_img"
    assert state[f"{key}.lora_down.weight"].shape == (4, WIDTH)
    assert state[f"{key}.lora_up.weight"].shape == (WIDTH, 4)
    assert state[f"{key}.lora_up.weight"].dtype == torch.bfloat16
    assert state[f"{key}.alpha"].dtype == torch.float32
    assert state[f"{key}.alpha"].shape == ()
    assert state[f"{key}.alpha"] == 2


def test_norm_limit_is_kohyas():
    network = trained(create_network(toy(), dim=4, alpha=2))
    products = {path: layer.lora_up.weight @ layer.lora_down.weight * layer.scale
                for path, layer in network.layers.items()}
    norms = {path: product.norm().item() for path, product in products.items()}
    limit = sorted(norms.values())[8]
    result = network.limit_norms(limit)
    assert result.scaled == sum(norm > limit * (1 + 1e-6) for norm in norms.values())
    assert result.largest == pytest.approx(limit, rel=1e-4)
    for path, layer in network.layers.items():
        after = layer.lora_up.weight @ layer.lora_down.weight * layer.scale
        assert torch.allclose(after, products[path] * min(1, limit / norms[path]), atol=1e-6)


def test_fp8_base_is_a_target_too():
    from wan.memory.fp8 import Fp8Linear

    plain = torch.nn.Linear(128, 64)
    base = Fp8Linear(128, 64)
    base.store(plain.weight.detach())
    base.bias = torch.nn.Parameter(plain.bias.detach(), requires_grad=False)
    x = torch.randn(3, 128)
    before = base(x)
    network = LoraNetwork({"layer": base}, sizes={"layer": (4, 4.0)})
    network.reset(0)
    network.attach()
    assert torch.equal(base(x), before)
    base(x).square().mean().backward()
    assert network.layers["layer"].lora_up.weight.grad.abs().sum() > 0
