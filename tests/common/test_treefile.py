"""Nested values come back from a file as they were."""

from collections.abc import Mapping
import math
from pathlib import Path
import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch

from common.errors import UserError
from common.tensorfile import save_tensors
from common.treefile import load_tree, save_tree


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Mapping):
        return [*one] == [*other] and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def test_what_optimisers_and_generators_remember_comes_back(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, betas=(0.8, 0.95))
    weight.sum().backward()
    optimizer.step()
    values = {"optimizer": optimizer.state_dict(), "python": random.getstate(), "numpy": np.random.get_state(),
              "torch": torch.get_rng_state(), "bytes": b"\0\1\2", "empty": {},
              "odd": [float("inf"), float("nan"), 1e-310, None, True],
              "8 bit": torch.arange(5, dtype=torch.uint8), "half": torch.ones(2, dtype=torch.bfloat16)}
    save_tree(tmp_path / "x.safetensors", values)
    assert same(load_tree(tmp_path / "x.safetensors"), values)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner)
                     | st.dictionaries(st.text(max_size=5), inner, max_size=3)
                     | st.dictionaries(st.integers(), inner, max_size=3), max_leaves=12)


@settings(max_examples=60, deadline=None)
@given(values=st.dictionaries(st.text(min_size=1, max_size=5), trees, max_size=4))
def test_any_nesting_comes_back(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("tree") / "x.safetensors"
    save_tree(path, values)
    assert same(load_tree(path), values)


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    save_tree(tmp_path / "x.safetensors", {"a": whole[:3], "b": whole[1:], "c": [whole]})
    back = load_tree(tmp_path / "x.safetensors")
    assert torch.equal(back["a"], whole[:3]) and torch.equal(back["c"][0], whole)


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'optimizer\.hook': a function cannot be saved"):
        save_tree(tmp_path / "x.safetensors", {"optimizer": {"hook": same}})


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)}, {})
    with pytest.raises(UserError, match="without the values that belong to a saved state"):
        load_tree(tmp_path / "x.safetensors")
