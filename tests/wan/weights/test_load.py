"""Filling a model: dtype, transform, tied tensors, refusals, memory."""

from pathlib import Path
import subprocess
import sys
import textwrap

import pytest
from safetensors.torch import save_file
import torch
from torch import nn

from common.errors import WeightsError
from common.tensorfile import load_tensors, save_tensors
import wan
from wan.memory.fp8 import Fp8Linear, Fp8Settings, quantise
from wan.memory.fp8_model import use_fp8_linears
from wan.weights.load import Adapted, load_into
from wan.weights.source import WeightsSource, open_weights


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(64, 8), nn.Linear(8, 4, bias=False)])
        self.register_buffer("steps", torch.zeros(3, dtype=torch.int64))


def _small() -> Small:
    with torch.device("meta"):
        return Small()


@pytest.fixture
def source(tmp_path: Path) -> WeightsSource:
    generator = torch.Generator().manual_seed(0)
    tensors = {"blocks.0.weight": torch.randn(8, 64, generator=generator),
               "blocks.0.bias": torch.randn(8, generator=generator),
               "blocks.1.weight": torch.randn(4, 8, generator=generator), "steps": torch.tensor([1, 2, 3])}
    save_file(tensors, tmp_path / "small.safetensors")
    return open_weights(tmp_path / "small.safetensors")


def test_floats_are_cast_and_whole_numbers_are_not(source: WeightsSource) -> None:
    model = load_into(_small(), source, dtype=torch.bfloat16)
    assert model.blocks[0].weight.dtype == torch.bfloat16
    assert torch.equal(model.blocks[0].weight, source.tensor("blocks.0.weight").bfloat16())
    assert model.steps.tolist() == [1, 2, 3]
    assert not model.training
    assert not model.blocks[0].weight.requires_grad


def test_transform_sees_every_tensor_once_in_its_stored_dtype(source: WeightsSource) -> None:
    seen = []

    def transform(name: str, tensor: torch.Tensor) -> torch.Tensor:
        seen.append((name, tensor.dtype))
        return tensor * 2 if name == "blocks.1.weight" else tensor

    model = load_into(_small(), source, dtype=torch.bfloat16, transform=transform)
    assert sorted(name for name, _ in seen) == sorted(source)
    assert ("blocks.0.weight", torch.float32) in seen
    assert torch.equal(model.blocks[1].weight, (source.tensor("blocks.1.weight") * 2).bfloat16())


def test_transform_may_not_change_a_shape(source: WeightsSource) -> None:
    with pytest.raises(WeightsError, match=r"transform of '.*' changed its shape from"):
        load_into(_small(), source, transform=lambda name, tensor: tensor[:1])


def test_transform_comes_before_fp8(source: WeightsSource) -> None:
    model = _small()
    use_fp8_linears(model)
    load_into(model, source, dtype=torch.float32, transform=lambda name, tensor: tensor + 1)
    linear = model.blocks[0]
    assert isinstance(linear, Fp8Linear)
    expected = quantise(source.tensor("blocks.0.weight") + 1)
    assert torch.equal(linear.weight.view(torch.uint8), expected.values.view(torch.uint8))
    assert torch.equal(linear.scale_weight, expected.scale)


def test_fp8_files_are_kept_unless_the_transform_touches_them(tmp_path: Path) -> None:
    kept = quantise(torch.randn(8, 64), Fp8Settings("tensor"))
    merged = quantise(torch.randn(4, 8), Fp8Settings("tensor"))
    save_file({"blocks.0.weight": kept.values, "blocks.0.scale_weight": kept.scale, "blocks.0.bias": torch.zeros(8),
               "blocks.1.weight": merged.values, "blocks.1.weight_scale": merged.scale,
               "steps": torch.zeros(3, dtype=torch.int64)}, tmp_path / "x.safetensors")
    model = _small()
    use_fp8_linears(model)

    def transform(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.add_(1) if name == "blocks.1.weight" else tensor  # in place, as a merge may do

    load_into(model, open_weights(tmp_path / "x.safetensors"), dtype=torch.bfloat16, transform=transform)
    assert torch.equal(model.blocks[0].weight.view(torch.uint8), kept.values.view(torch.uint8))
    assert not torch.equal(model.blocks[1].weight.view(torch.uint8), merged.values.view(torch.uint8))


def test_adapted_tensors_are_cut_from_stored_ones_without_keeping_them(tmp_path: Path) -> None:
    save_file({"qkv": torch.arange(12.0).reshape(6, 2)}, tmp_path / "x.safetensors")
    with torch.device("meta"):
        model = nn.ModuleDict({name: nn.Linear(2, 2, bias=False) for name in "qkv"})
    parts = {f"{name}.weight": Adapted("qkv", lambda rows, i=i: rows.chunk(3)[i]) for i, name in enumerate("qkv")}
    load_into(model, open_weights(tmp_path / "x.safetensors"), parts)
    assert model["k"].weight.tolist() == [[4, 5], [6, 7]]
    assert model["k"].weight.untyped_storage().nbytes() == 16


def test_tied_parameters_stay_one(tmp_path: Path) -> None:
    save_file({"a": torch.randn(4, 3)}, tmp_path / "x.safetensors")
    with torch.device("meta"):
        model = nn.ModuleDict({"first": nn.Embedding(4, 3), "second": nn.Embedding(4, 3)})
    model["second"].weight = model["first"].weight
    load_into(model, open_weights(tmp_path / "x.safetensors"), {"first.weight": "a", "second.weight": "a"})
    assert model["second"].weight is model["first"].weight


def test_missing_unexpected_and_misshapen_are_listed_together(tmp_path: Path) -> None:
    save_file({"blocks.0.weight": torch.zeros(8, 63), "blocks.0.bias": torch.zeros(8), "steps": torch.zeros(3).long(),
               "lm_head.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    model = _small()
    with pytest.raises(WeightsError) as caught:
        load_into(model, open_weights(tmp_path / "x.safetensors"))
    text = str(caught.value)
    assert "x.safetensors: does not fit Small" in text
    assert "1 missing: blocks.1.weight" in text
    assert "1 unexpected: lm_head.weight" in text
    assert "1 of another shape: blocks.0.weight [8, 63] instead of [8, 64]" in text
    assert all(parameter.is_meta for parameter in model.parameters())  # nothing was read


def test_ignored_names_may_be_left_over(source: WeightsSource) -> None:
    with torch.device("meta"):
        model = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(64, 8)])})
    load_into(model, source, ignored=lambda name: name == "steps" or name.startswith("blocks.1"))
    assert torch.equal(model["blocks"][0].weight, source.tensor("blocks.0.weight"))


MEASURE = """
    import resource, sys, torch
    from torch import nn
    from wan.weights.load import load_into
    from wan.weights.source import open_weights
    with torch.device("meta"):
        model = nn.Sequential(*[nn.Linear(2048, 2048, bias=False) for _ in range(16)])
    with open_weights(sys.argv[1]) as source:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        load_into(model, source, dtype=torch.bfloat16)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_memory_holds_the_model_and_one_tensor(name: str, tmp_path: Path, root: Path) -> None:
    """256 MB in float32 become a model of 128 MB; a second copy of either would show."""
    tensors = {f"{i}.weight": torch.zeros(2048, 2048) for i in range(16)}
    save_file(tensors, tmp_path / name) if name.endswith("safetensors") else torch.save(tensors, tmp_path / name)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path / name)], cwd=root, check=True,
                          capture_output=True, text=True)
    grown_mb = float(done.stdout)
    assert grown_mb < 128 + 3 * 16 + 8


def test_meta_device_checks_the_fit_and_reads_nothing(tiny_weights: Path, tmp_path: Path) -> None:
    import wan

    tensors, metadata = load_tensors(tiny_weights / "wan2.1_t2v_tiny.safetensors")
    dit = wan.load_dit(tiny_weights / "wan2.1_t2v_tiny.safetensors", device="meta")
    assert all(parameter.is_meta for parameter in dit.parameters())
    del tensors["blocks.1.ffn.0.weight"]
    save_tensors(tmp_path / "half.safetensors", tensors, metadata)
    with pytest.raises(WeightsError, match=r"1 missing: blocks\.1\.ffn\.0\.weight"):
        wan.load_dit(tmp_path / "half.safetensors", device="meta")


@pytest.mark.parametrize("fp8", [None, Fp8Settings()])
def test_blocks_on_the_cpu_hold_the_numbers_of_an_ordinary_load(golden: Path, fp8: Fp8Settings | None) -> None:
    """Which device a tensor is on cannot differ here; that it was asked to be elsewhere can."""
    path, asked = golden / "wan21_t2v_dit.safetensors", []
    plain = wan.load_dit(path, fp8=fp8)
    dit = wan.load_dit(path, fp8=fp8, blocks_on_cpu=[1], transform=lambda name, tensor: asked.append(name) or tensor)
    assert any(name.startswith("blocks.1.") for name in asked)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(dit.state_dict()[name].view(torch.uint8), tensor.view(torch.uint8)), name
