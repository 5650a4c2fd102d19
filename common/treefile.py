"""Nested values with tensors in one safetensors file: what an optimiser, a schedule or a callback remembers.

The tensors lie in the file as they are; the rest is JSON in its metadata. Floats keep every bit, tuples stay tuples and
keys of dicts stay integers where they were.
"""

from collections.abc import Mapping
import json
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.tensorfile import load_tensors, save_tensors

_TREE = "tree"
_KIND = "__kind__"


def save_tree(path: str | os.PathLike[str], values: Mapping[str, Any]) -> None:
    """Write `values` (dicts, lists, tuples, numbers, texts, None, bytes, numpy arrays, tensors), atomically.

    TypeError names the place of anything else.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_packed(values, "", tensors))
    save_tensors(path, tensors, {_TREE: tree})


def load_tree(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_tree` wrote; tensors on the CPU. UserError where the file is damaged or of another kind."""
    tensors, metadata = load_tensors(path)
    if _TREE not in metadata:
        raise UserError(f"{path}: a safetensors file without the values that belong to a saved state.")
    values: dict[str, Any] = _unpacked(json.loads(metadata[_TREE]), tensors)
    return values


def _packed(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Tensor, np.ndarray, bytes)):
        name = place if place and place not in tensors else f"{place}#{len(tensors)}"
        kind = "tensor" if isinstance(value, Tensor) else "array" if isinstance(value, np.ndarray) else "bytes"
        if isinstance(value, bytes):
            value = np.frombuffer(value, dtype=np.uint8).copy()
        # Bits are what must come back; safetensors knows neither all of numpy's dtypes nor all byte orders.
        dtype = str(value.dtype) if isinstance(value, np.ndarray) else ""
        if isinstance(value, np.ndarray):
            tensors[name] = torch.from_numpy(np.frombuffer(value.tobytes(), dtype=np.uint8).copy())
            return {_KIND: kind, "name": name, "dtype": dtype, "shape": list(value.shape)}
        tensors[name] = value.detach().cpu().clone()
        return {_KIND: kind, "name": name}
    if isinstance(value, (list, tuple)):
        items = [_packed(one, f"{place}.{i}" if place else str(i), tensors) for i, one in enumerate(value)]
        return items if isinstance(value, list) else {_KIND: "tuple", "items": items}
    if isinstance(value, Mapping):
        pairs = [[key, _packed(one, f"{place}.{key}" if place else str(key), tensors)] for key, one in value.items()]
        if all(isinstance(key, str) and key != _KIND for key in value):
            return dict(pairs)
        if all(isinstance(key, (int, str)) for key in value):
            return {_KIND: "dict", "items": pairs}
    raise TypeError(f"'{place}': a {type(value).__name__} cannot be saved in a state")


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_KIND)
    if kind is None:
        return {key: _unpacked(one, tensors) for key, one in value.items()}
    if kind == "tuple":
        return tuple(_unpacked(one, tensors) for one in value["items"])
    if kind == "dict":
        return {key: _unpacked(one, tensors) for key, one in value["items"]}
    tensor = tensors[value["name"]]
    if kind == "tensor":
        return tensor
    raw = tensor.numpy().tobytes()
    return raw if kind == "bytes" else np.frombuffer(raw, dtype=value["dtype"]).reshape(value["shape"]).copy()
