"""Names of tensors, official and diffusers'."""

import json
from pathlib import Path

import pytest

from wan.weights.keys import from_diffusers, to_diffusers


@pytest.mark.parametrize("model", ["wan21_t2v_dit", "wan21_i2v_dit", "wan21_flf2v_dit"])
def test_map_equals_the_one_that_was_measured_on_diffusers(model: str, shared: Path) -> None:
    measured = json.loads((shared / "manifests" / "key_maps_to_diffusers_and_transformers.json").read_text())[model]
    assert {key: to_diffusers(key) for key in measured} == measured
    assert {name: from_diffusers(name) for name in measured.values()} == {name: key for key, name in measured.items()}


def test_norm_before_cross_attention_changes_its_number() -> None:
    assert to_diffusers("blocks.7.norm3.weight") == "blocks.7.norm2.weight"
    assert from_diffusers("blocks.7.norm2.bias") == "blocks.7.norm3.bias"


def test_both_modulations_are_told_apart() -> None:
    assert to_diffusers("head.modulation") == "scale_shift_table"
    assert to_diffusers("blocks.0.modulation") == "blocks.0.scale_shift_table"


def test_unknown_names_stay() -> None:
    assert to_diffusers("blocks.0.face.weight") == "blocks.0.face.weight"
