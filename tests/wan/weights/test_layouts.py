"""The same weights in every layout give the same model."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
import torch

from tests.wan.weights import layouts
import wan
from wan.memory.fp8 import Fp8Linear, Fp8Settings
from wan.modules.dit import WanDiT


@pytest.fixture(scope="module")
def tensors(tiny_weights: Path) -> layouts.Tensors:
    return load_file(tiny_weights / "wan2.1_t2v_tiny.safetensors")


def _assert_holds(dit: WanDiT, tensors: layouts.Tensors, dtype: torch.dtype = torch.float32) -> None:
    state = dit.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert state[name].dtype == dtype
        assert torch.equal(state[name], tensor.to(dtype)), name


@pytest.mark.parametrize("write", layouts.LAYOUTS, ids=lambda write: write.__name__)
def test_every_layout_loads_to_the_same_tensors(write, tmp_path: Path, tensors: layouts.Tensors) -> None:
    dit = wan.load_dit(write(tmp_path, tensors))
    _assert_holds(dit, tensors)
    assert not dit.training
    assert not any(parameter.requires_grad for parameter in dit.parameters())


@pytest.mark.parametrize("name", ["i2v", "flf2v"])
def test_models_with_an_image_branch_load_from_diffusers_names(name: str, tmp_path: Path, tiny_weights: Path) -> None:
    tensors = load_file(tiny_weights / f"wan2.1_{name}_tiny.safetensors")
    (tmp_path / "d").mkdir()
    dit = wan.load_dit(layouts.diffusers_folder(tmp_path / "d", tensors))
    _assert_holds(dit, tensors)
    assert dit.variant.family == name


def test_half_precision_and_plain_fp8_files_are_cast(tmp_path: Path, tensors: layouts.Tensors) -> None:
    stored = {name: tensor.to(torch.float8_e4m3fn if layouts.is_scaled(name) else torch.float16)
              for name, tensor in tensors.items()}
    path = layouts.comfyui(tmp_path, stored)
    _assert_holds(wan.load_dit(path, dtype=torch.bfloat16), stored, torch.bfloat16)


@pytest.mark.parametrize("newer", [False, True])
def test_scaled_fp8_is_multiplied_out(newer: bool, tmp_path: Path, tensors: layouts.Tensors) -> None:
    dit = wan.load_dit(layouts.scaled_fp8(tmp_path, tensors, newer=newer))
    state = dit.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        error = (state[name] - tensor.float()).norm() / tensor.float().norm()
        assert error <= (0.04 if layouts.is_scaled(name) else 0), name


@pytest.mark.parametrize("newer", [False, True])
def test_scaled_fp8_stays_as_it_is_where_fp8_is_asked(newer: bool, tmp_path: Path, tensors: layouts.Tensors) -> None:
    path = layouts.scaled_fp8(tmp_path, tensors, newer=newer)
    stored = load_file(path)
    dit, plain = wan.load_dit(path, fp8=Fp8Settings(mode="block")), wan.load_dit(path)
    linear = dit.get_submodule("blocks.0.ffn.0")
    assert isinstance(linear, Fp8Linear)
    original = stored["model.diffusion_model.blocks.0.ffn.0.weight"]
    assert torch.equal(linear.weight.view(torch.uint8), original.view(torch.uint8))
    assert linear.scale_weight.dtype == torch.float32
    assert torch.equal(linear.dequantised_weight(torch.float32), plain.get_submodule("blocks.0.ffn.0").weight)


def test_blockwise_scales_of_musubi_are_read(tmp_path: Path, tensors: layouts.Tensors) -> None:
    from wan.memory.fp8 import dequantise, quantise

    name = "blocks.0.ffn.2.weight"
    quantised = quantise(tensors[name])
    stored = {**tensors, name: quantised.values,
              "blocks.0.ffn.2.scale_weight": quantised.scale.to(torch.bfloat16)}
    dit = wan.load_dit(layouts.official(tmp_path, stored))
    assert torch.equal(dit.state_dict()[name], dequantise(quantised, torch.float32))


def test_other_quantisations_are_named(tmp_path: Path, tensors: layouts.Tensors) -> None:
    mark = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)
    path = layouts.official(tmp_path, {**tensors, "blocks.0.ffn.0.comfy_quant": mark})
    with pytest.raises(Exception, match=r"'blocks.0.ffn.0' is quantised as 'nvfp4'.*use the bf16, fp16 or fp8 file"):
        wan.load_dit(path)


def test_dtype_none_keeps_what_is_stored(tmp_path: Path, tensors: layouts.Tensors) -> None:
    dit = wan.load_dit(layouts.official(tmp_path, tensors), dtype=None)
    _assert_holds(dit, tensors, torch.bfloat16)
