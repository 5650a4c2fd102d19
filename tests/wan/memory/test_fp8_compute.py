"""Products in float8: their error, their gradient, what they are made of. torch computes them on the CPU too."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from networks.layer import Dropouts, LoraLayer, Switch
from networks.lycoris import DoraLayer
from tests.tiny_dit import tiny_dit, tiny_inputs, tiny_variant
from wan.memory.fp8 import Fp8Linear, Fp8Settings, Quantised, dequantise, quantise
from wan.memory.fp8_compute import Fp8ProductLinear
from wan.memory.fp8_model import use_fp8_linears
from wan.memory.fp8_rows import LARGEST, quantise_rows
from wan.modules.dit import WanDiT


def pair(inside: int = 64, outside: int = 96, *, seed: int = 0) -> tuple[nn.Linear, Fp8ProductLinear]:
    """A bfloat16 linear layer and its float8 form."""
    torch.manual_seed(seed)
    plain = nn.Linear(inside, outside).to(torch.bfloat16).requires_grad_(False)
    fast = Fp8ProductLinear(inside, outside)
    fast.store(plain.weight)
    fast.bias = nn.Parameter(plain.bias.clone(), requires_grad=False)
    return plain, fast


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.float() - other.float()).norm() / other.float().norm()).item()


def test_rows_are_scaled_to_the_largest_number_and_zeros_stay() -> None:
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [1e4, 1.0, 0.0]])
    values, scale = quantise_rows(x)
    assert values.dtype == torch.float8_e4m3fn and scale.dtype == torch.float32
    assert values.float().abs().amax(1).tolist() == [LARGEST, 0.0, LARGEST]
    assert relative(values.float() * scale, x) < 0.04


@pytest.mark.parametrize("shape", [(2, 37, 64), (5, 64)])
def test_output_and_input_gradient_have_the_error_of_eight_bits(shape: tuple[int, ...]) -> None:
    """About 3.7 % a product on Gaussian numbers (measured elsewhere with exact emulation)."""
    plain, fast = pair()
    x = torch.randn(shape, dtype=torch.bfloat16, requires_grad=True)
    expected, found = plain(x), fast(x)
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    assert 0.02 < relative(found, expected) < 0.045
    gradient = torch.randn_like(expected)
    (right,) = torch.autograd.grad(expected, x, gradient)
    (fast_gradient,) = torch.autograd.grad(found, x, gradient)
    assert 0.02 < relative(fast_gradient, right) < 0.045


def test_the_product_is_that_of_the_rounded_numbers() -> None:
    """Against the same quantised numbers multiplied in float64: what is left is the result's rounding to bfloat16."""
    _, fast = pair()
    x = torch.randn(19, 64, dtype=torch.bfloat16)
    values, scale = quantise_rows(x)
    weight = fast.dequantised_weight(torch.float32).double()
    expected = values.double() * scale.double() @ weight.T + fast.bias.double()
    assert relative(fast(x), expected) < 3e-3


@pytest.mark.parametrize("settings", [Fp8Settings(), Fp8Settings(mode="channel"),
                                      Fp8Settings(mode="tensor", dtype=torch.float8_e5m2)])
def test_weights_that_were_quantised_otherwise_get_one_scale(settings: Fp8Settings) -> None:
    weight = torch.randn(96, 64)
    stored = quantise(weight, settings)
    fast = Fp8ProductLinear(64, 96)
    fast.store(stored)
    assert fast.scale_weight.ndim == 0 and fast.weight.dtype == torch.float8_e4m3fn
    assert relative(fast.dequantised_weight(torch.float32), dequantise(stored, torch.float32)) < 0.04


def test_a_scaled_file_is_taken_as_it_is() -> None:
    stored = quantise(torch.randn(96, 64), Fp8Settings(mode="tensor"))
    fast = Fp8ProductLinear(64, 96)
    fast.store(Quantised(stored.values, stored.scale.reshape(1)))
    assert torch.equal(fast.weight.view(torch.uint8), stored.values.view(torch.uint8))


def fp8_dit() -> WanDiT:
    plain = tiny_dit(tiny_variant(ffn_dim=64), dtype=torch.bfloat16)
    fast = tiny_dit(tiny_variant(ffn_dim=64), dtype=torch.bfloat16)
    weights = {name: module.weight for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    biases = {name: module.bias for name, module in plain.named_modules() if isinstance(module, nn.Linear)}
    for name in use_fp8_linears(fast, Fp8Settings(mode="tensor", computes=True)):
        layer = fast.get_submodule(name)
        assert isinstance(layer, Fp8Linear)
        layer.store(weights[name])
        layer.bias = nn.Parameter(biases[name].clone(), requires_grad=False)
    return fast


def test_a_model_multiplies_in_float8_but_for_text_and_few_rows() -> None:
    fast = fp8_dit()
    kinds = {name.removeprefix("blocks.0."): type(module) for name, module in fast.named_modules()
             if name.startswith("blocks.0.") and isinstance(module, nn.Linear)}
    stored = {name for name, kind in kinds.items() if kind is Fp8Linear}
    assert stored == {"cross_attn.k", "cross_attn.v"}
    assert all(kind is Fp8ProductLinear for name, kind in kinds.items() if name not in stored)
    assert type(fast.text_embedding[0]) is nn.Linear and type(fast.head.head) is not Fp8ProductLinear


def test_the_velocity_is_near_that_of_bfloat16() -> None:
    latents, timestep, text = tiny_inputs()
    plain = tiny_dit(tiny_variant(ffn_dim=64), dtype=torch.bfloat16)
    with torch.no_grad():
        assert relative(fp8_dit()(latents, timestep, text), plain(latents, timestep, text)) < 0.1


def test_sizes_that_do_not_suit_the_units_are_stored_only() -> None:
    dit = tiny_dit(tiny_variant(ffn_dim=40), dtype=torch.bfloat16)
    use_fp8_linears(dit, Fp8Settings(mode="tensor", computes=True))
    assert type(dit.blocks[0].ffn[0]) is Fp8Linear and type(dit.blocks[0].self_attn.q) is Fp8ProductLinear


def test_a_lora_is_added_where_the_product_lies_with_the_same_numbers() -> None:
    (_, fast), switch = pair(32, 48), Switch()
    layer = LoraLayer(fast, switch, rank=4, alpha=2.0)
    torch.nn.init.normal_(layer.lora_down.weight)
    torch.nn.init.normal_(layer.lora_up.weight)
    x = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    gradient = torch.randn(2, 5, 48, dtype=torch.bfloat16)

    def run(forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
        given = x.clone().requires_grad_()
        out = forward(given)
        return [out, *torch.autograd.grad(out, (given, *layer.parameters()), gradient)]

    apart = run(lambda given: layer.added(given, fast(given)))
    layer.attach()
    together = run(fast)
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one, other)
    switch.is_on = False
    assert torch.equal(fast(x), fast.forward_with(x, None, None, 1.0))


def test_module_dropout_is_drawn_once_beside_a_base_that_adds_itself() -> None:
    fast = pair(16, 16)[1]
    layer = LoraLayer(fast, Switch(), rank=2, alpha=2.0, dropouts=Dropouts(module=0.5)).train()
    torch.nn.init.normal_(layer.lora_up.weight)
    layer.attach()
    x = torch.randn(3, 16, dtype=torch.bfloat16)
    torch.manual_seed(1)
    is_skipped = [torch.rand(()).item() < 0.5 for _ in range(20)]
    torch.manual_seed(1)
    assert [torch.equal(fast(x), fast.forward_with(x, None, None, 1.0)) for _ in range(20)] == is_skipped


def test_dora_turns_what_a_base_in_float8_gives_and_learns_its_lengths() -> None:
    """Lengths that are twice the base's double what it gives; a base that adds by itself would not know of them."""
    fast = pair(32, 48)[1]
    layer = DoraLayer(fast, Switch(), rank=4, alpha=4.0)
    layer.reset(torch.Generator().manual_seed(0))
    x = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    plain = fast(x)
    layer.attach()
    assert torch.equal(fast(x), plain)
    with torch.no_grad():
        layer.dora_scale.mul_(2)
    found, bias = fast(x), fast.bias
    assert bias is not None and relative(found, 2 * plain.float() - bias.float()) < 0.01
    (gradient,) = torch.autograd.grad(found.float().square().sum(), layer.dora_scale)
    assert float(gradient.abs().min()) > 0
