"""The light set: weights and inputs of tiny models as a pure function of their names, outputs of the original code.

The outputs in `data/light.safetensors` were made by running the original Wan 2.1 code in float32 (see the docstrings of
the tests that read them); nothing but names and shapes is needed to repeat the computation.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
import zlib

import numpy as np
from safetensors.torch import load_file
import torch
from torch import Tensor

OUTPUTS = Path(__file__).parent / "data" / "light.safetensors"


def value(name: str, shape: tuple[int, ...] | list[int]) -> Tensor:
    """float32 numbers in [-1, 1), a pure function of `name` and the element's index (splitmix64 of both).

    ``value("check", [4])`` is 0.8533 0.7954 0.5037 0.4149.
    """
    count = int(np.prod(shape, dtype=np.int64))
    start = np.uint64(zlib.crc32(name.encode()) * 0xD1342543DE82EF95 % 2**64)
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + start
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    unit = (z >> np.uint64(40)).astype(np.float64) / 2.0**24
    return torch.from_numpy((2.0 * unit - 1.0).astype(np.float32)).reshape(tuple(shape))


def light_input(name: str, shape: tuple[int, ...] | list[int], *, scaled: bool = False) -> Tensor:
    """Input `name` of a case such as ``t2v0.x``; `scaled` multiplies by 1.7 (latents, contexts, CLIP features)."""
    return value(f"dev/{name}", shape) * (1.7 if scaled else 1.0)


def light_weight(model: str, key: str, shape: tuple[int, ...] | list[int], scale: float) -> Tensor:
    """Weight `key` (original key name) of the light model `model`; norm weights lie around 1."""
    weight = value(f"dev/{model}/{key}", shape) * scale
    is_norm = key.endswith("gamma") or ("norm" in key and key.endswith("weight"))
    return weight + 1 if is_norm else weight


def light_state(model: str, shapes: Mapping[str, tuple[int, ...] | torch.Size], scale: float) -> dict[str, Tensor]:
    """State dict of the light model `model` for keys and shapes such as those of our own class."""
    return {key: light_weight(model, key, tuple(shape), scale) for key, shape in shapes.items()}


@cache
def light_outputs() -> dict[str, Tensor]:
    """What the original code returned, by name (``t2v0.velocity`` …)."""
    return load_file(OUTPUTS)
