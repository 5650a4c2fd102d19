"""LoRA files of three layouts on the tiny Wan DiT against the velocities of musubi-tuner's own code."""

import pytest
from safetensors.torch import load_file
import torch

from networks.attach import attach_lora
from networks.formats import read_lora
from networks.lora_wan import create_network
from networks.merge import merge_transform
from wan.weights.dit import load_dit

FILES = {"lora_musubi": "kohya/musubi-tuner", "lora_comfy": "ComfyUI", "lora_diffusers": "diffusers"}
MULTIPLIERS = (1.0, 0.5, -0.75)
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def cases(golden):
    inputs, expected = load_file(golden / "wan21_t2v_dit_io.safetensors"), load_file(golden / "lora_io.safetensors")
    return [({name: inputs[f"{case}.{name}"] for name in ("x", "t", "context")},
             {m: expected[f"{case}.velocity_x{m}"] for m in MULTIPLIERS}, inputs[f"{case}.velocity"])
            for case in range(3)]


@torch.no_grad()
def velocity(dit, inputs):
    return dit(inputs["x"][None], inputs["t"], [inputs["context"]])[0]


@pytest.mark.parametrize("name", FILES)
def test_attached_and_switched_off(golden, cases, name):
    dit = load_dit(golden / "wan21_t2v_dit.safetensors")
    network, report = attach_lora(dit, golden / f"{name}.safetensors")
    assert (report.layout, report.applied, report.unused, report.others) == (FILES[name], 20, [], [])
    for inputs, expected, plain in cases:
        for multiplier in MULTIPLIERS:
            network.multiplier = multiplier
            assert torch.allclose(velocity(dit, inputs), expected[multiplier], rtol=0, atol=TOLERANCE)
        with network.enabled(False):
            assert torch.allclose(velocity(dit, inputs), plain, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("name", FILES)
def test_merged_while_loading(golden, cases, name, multiplier):
    merge = merge_transform([(golden / f"{name}.safetensors", multiplier)])
    dit = load_dit(golden / "wan21_t2v_dit.safetensors", transform=merge)
    assert merge.reports()[0].applied == 20
    for inputs, expected, _ in cases:
        assert torch.allclose(velocity(dit, inputs), expected[multiplier], rtol=0, atol=TOLERANCE)


def test_several_files_add_up(golden, cases):
    files = [(golden / f"{name}.safetensors", share) for name, share in zip(FILES, (0.5, 0.25, 0.25), strict=True)]
    dit = load_dit(golden / "wan21_t2v_dit.safetensors", transform=merge_transform(files))
    for inputs, expected, _ in cases:
        assert torch.allclose(velocity(dit, inputs), expected[1.0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", FILES)
def test_training_starts_from_any_layout(golden, cases, name):
    dit = load_dit(golden / "wan21_t2v_dit.safetensors")
    network = create_network(dit, dim=4, alpha=2).attach()
    assert network.load(read_lora(golden / f"{name}.safetensors")).applied == 20
    for inputs, expected, _ in cases:
        assert torch.allclose(velocity(dit, inputs), expected[1.0], rtol=0, atol=TOLERANCE)


def test_what_we_save_is_what_musubi_wrote(golden):
    """Same keys, shapes and values, so that every reader of musubi-tuner's files reads ours."""
    theirs = load_file(golden / "lora_musubi.safetensors")
    dit = load_dit(golden / "wan21_t2v_dit.safetensors")
    network = create_network(dit, dim=4, alpha=2)
    network.load(read_lora(golden / "lora_musubi.safetensors"))
    ours = network.state(torch.bfloat16)
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in theirs)


def test_merging_before_fp8_keeps_the_delta(golden):
    """musubi-tuner merges base weights after quantising, which loses the delta; here it is merged before."""
    from wan.memory.fp8 import Fp8Settings

    path = golden / "wan21_t2v_dit.safetensors"
    name = "blocks.0.self_attn.q"
    plain = load_dit(path).get_submodule(name).weight
    merged = load_dit(path, transform=merge_transform([(golden / "lora_musubi.safetensors", 1.0)]))
    intended = merged.get_submodule(name).weight - plain
    kept = load_dit(path, fp8=Fp8Settings(), transform=merge_transform([(golden / "lora_musubi.safetensors", 1.0)]))
    realised = kept.get_submodule(name).dequantised_weight(torch.float32) - plain
    share = ((realised * intended).sum() / intended.square().sum()).item()
    assert share == pytest.approx(1, abs=0.05)
