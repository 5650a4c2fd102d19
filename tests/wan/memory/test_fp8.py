"""fp8 storage: numbers of musubi-tuner's own code, gradients, and what a model's `.to()` may do."""

import copy
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
import torch
from torch.utils.checkpoint import checkpoint

from common.errors import ConfigError
import wan
from wan.memory.fp8 import Fp8Linear, Fp8Settings, Quantised, dequantise, quantise
from wan.memory.fp8_model import require_fp8_compute, use_fp8_linears

DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
MODES = ("tensor", "channel", "block")
CASES = [f"{weight}.{mode}.{dtype}" for weight in "abcde" for mode in MODES for dtype in DTYPES]
BLOCKWISE = Fp8Settings()


def _linear(weight: torch.Tensor, settings: Fp8Settings = BLOCKWISE) -> Fp8Linear:
    layer = Fp8Linear(weight.shape[1], weight.shape[0], bias=False, settings=settings)
    layer.store(weight)
    return layer


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("case", CASES)
def test_quantising_is_bit_equal_to_musubi_tuner(case: str, golden: Path) -> None:
    io = load_file(golden / "fp8_io.safetensors")
    name, mode, dtype = case.split(".")
    weight, settings = io[f"{name}.weight"], Fp8Settings(mode, DTYPES[dtype])
    values, scale = quantise(weight, settings)
    assert _same_bits(values, io[f"{case}.quantised"])
    assert _same_bits(scale, io[f"{case}.scale_float32"])
    stored = scale.to(weight.dtype)
    assert _same_bits(stored, io[f"{case}.scale_stored"])
    assert torch.equal(dequantise(Quantised(values, stored), weight.dtype), io[f"{case}.dequantised"])
    if f"{case}.linear" in io:
        computed, expected = _linear(weight, settings)(io[f"{name}.x"].to(weight.dtype)), io[f"{case}.linear"]
        rounding = torch.finfo(weight.dtype).eps * expected.abs().max().item()  # of sums in another order
        torch.testing.assert_close(computed, expected, atol=4 * rounding, rtol=0)


def test_model_with_fp8_blocks_equals_musubi_tuners(golden: Path) -> None:
    dit = wan.load_dit(golden / "wan21_t2v_dit.safetensors", fp8=Fp8Settings())
    expected = json.loads((golden / "fp8.json").read_text())["model"]
    quantised = {f"{name}.weight": module for name, module in dit.named_modules() if isinstance(module, Fp8Linear)}
    assert sorted(quantised) == sorted(expected["quantised"])
    for name, module in quantised.items():
        key = f"{name.removesuffix('.weight')}.scale_weight"
        assert list(module.scale_weight.shape) == expected["scale_shapes"][key]
    inputs, outputs = load_file(golden / "wan21_t2v_dit_io.safetensors"), load_file(golden / "fp8_io.safetensors")
    for case in "012":
        velocity = dit(inputs[f"{case}.x"][None], inputs[f"{case}.t"], [inputs[f"{case}.context"]])[0]
        torch.testing.assert_close(velocity, outputs[f"model.{case}.velocity"], atol=5e-5, rtol=0)


def test_rows_of_zeros_stay_zero() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        weight = torch.zeros(4, 64, dtype=dtype)
        assert torch.equal(_linear(weight).dequantised_weight(dtype), weight)


@pytest.mark.parametrize("mode", MODES)
def test_gradient_reaches_the_input_as_through_an_ordinary_linear(mode: str) -> None:
    layer = _linear(torch.randn(24, 128), Fp8Settings(mode))
    x = torch.randn(2, 5, 128, requires_grad=True)
    weight = layer.dequantised_weight(torch.float32)
    (expected,) = torch.autograd.grad(torch.nn.functional.linear(x, weight).square().sum(), x)
    (found,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(found, expected)
    assert layer.weight.grad is None


def test_bias_is_added_and_trainable() -> None:
    layer = Fp8Linear(64, 3)
    layer.store(torch.randn(3, 64))
    layer.bias = torch.nn.Parameter(torch.randn(3))
    x = torch.randn(7, 64)
    torch.testing.assert_close(layer(x), x @ layer.dequantised_weight(torch.float32).T + layer.bias)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 7.0))


def test_nothing_but_the_fp8_weight_is_kept_for_the_backward_pass() -> None:
    layer, kept = _linear(torch.randn(64, 64)), []
    x = torch.randn(3, 64, requires_grad=True)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x)
    assert {tensor.dtype for tensor in kept} == {torch.float8_e4m3fn, torch.float32}
    assert sum(tensor.nbytes for tensor in kept) == layer.weight.nbytes + layer.scale_weight.nbytes


def test_lora_beside_fp8_trains_through_checkpointing() -> None:
    layer = _linear(torch.randn(64, 64).bfloat16())
    down, up = torch.randn(4, 64, requires_grad=True), torch.randn(64, 4, requires_grad=True)

    def block(x: torch.Tensor) -> torch.Tensor:
        return layer(torch.tanh(layer(x).float() + x @ down.T @ up.T).to(x.dtype))

    x = torch.randn(2, 3, 64)
    plain = torch.autograd.grad(block(x).square().sum(), (down, up))
    saved = torch.autograd.grad(checkpoint(block, x, use_reentrant=False).square().sum(), (down, up))
    for one, other in zip(plain, saved, strict=True):
        assert one.norm() > 0
        assert torch.equal(one, other)


def test_dit_in_fp8_trains_an_input_with_every_block(golden: Path) -> None:
    dit = wan.load_dit(golden / "wan21_t2v_dit.safetensors", fp8=Fp8Settings(), dtype=torch.bfloat16)
    latents = torch.randn(1, 16, 1, 4, 4, requires_grad=True)
    dit(latents, torch.tensor([500.0]), [torch.randn(4, 64)]).square().sum().backward()
    assert latents.grad is not None and latents.grad.norm() > 0
    assert all(parameter.grad is None for parameter in dit.parameters())


def test_moving_a_model_to_another_dtype_leaves_fp8_alone() -> None:
    layer = _linear(torch.randn(8, 64))
    before = layer.weight.clone()
    layer.to(torch.bfloat16)
    assert layer.weight.dtype == torch.float8_e4m3fn
    assert _same_bits(layer.weight, before)
    assert layer.scale_weight.dtype == torch.bfloat16
    assert layer.to("meta").weight.is_meta


def test_copies_and_state_dicts_carry_values_and_scale() -> None:
    layer = _linear(torch.randn(8, 64))
    other = copy.deepcopy(layer)
    assert set(layer.state_dict()) == {"weight", "scale_weight"}
    x = torch.randn(2, 64)
    assert torch.equal(other(x), layer(x))


def test_autocast_decides_the_dtype_of_the_product() -> None:
    layer = _linear(torch.randn(8, 64))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16
    assert layer(torch.randn(2, 64)).dtype == torch.float32


def test_a_float32_scale_is_not_rounded_in_a_bfloat16_product() -> None:
    values = torch.full((2, 2), 1.0).to(torch.float8_e4m3fn)
    scale = torch.tensor(1 + 2**-9)
    assert dequantise(Quantised(values, scale), torch.float32)[0, 0] == 1 + 2**-9
    assert dequantise(Quantised(values, torch.tensor([1.0, 2.0])), torch.bfloat16).tolist() == [[1, 1], [2, 2]]


def test_only_the_linears_of_the_blocks_are_replaced(tiny_weights: Path) -> None:
    dit = wan.load_dit(tiny_weights / "wan2.1_i2v_tiny.safetensors")
    names = use_fp8_linears(dit)
    assert len(names) == 2 * 12
    assert {name.split(".", 2)[2] for name in names} == {
        *(f"{attention}_attn.{part}" for attention in ("self", "cross") for part in "qkvo"),
        "cross_attn.k_img", "cross_attn.v_img", "ffn.0", "ffn.2"}


def test_fp8_compute_is_refused_where_there_are_no_units(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="the device is 'cpu', which has no fp8 units.*works on every device"):
        require_fp8_compute("cpu")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(ConfigError, match="NVIDIA A100 has compute capability 8.0; fp8 units came with 8.9"):
        require_fp8_compute("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    require_fp8_compute("cuda:0")
    for dtype in (torch.float32, torch.float16):
        with pytest.raises(ConfigError, match="run in float(32|16); the units give bfloat16. Use bfloat16"):
            require_fp8_compute("cuda:0", dtype)
