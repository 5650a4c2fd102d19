"""Random tensors that depend on a seed and their own name only."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import math

import torch
from torch import Tensor

from common.seeding import generator

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Draws:
    """Source of the values of one file: changing one tensor's shape leaves all others as they were."""

    seed: int
    file: str

    def normal(self, key: str, shape: tuple[int, ...], std: float = 1.0) -> Tensor:
        """Normal numbers of mean 0."""
        return torch.randn(shape, generator=generator(self.seed, f"tiny weights/{self.file}/{key}")) * std

    def linear(self, key: str, shape: tuple[int, ...], gain: float = 1.0) -> Tensor:
        """A weight that keeps the deviation of its input, times `gain`: std = gain / sqrt(inputs)."""
        return self.normal(key, shape, gain / math.sqrt(math.prod(shape[1:])))

    def fill(self, shapes: Shapes, gain_of: Callable[[str], float] = lambda key: 1.0) -> dict[str, Tensor]:
        """Every tensor by what its name says: norms near 1, biases near 0, the rest as `linear`."""
        filled = {}
        for key, shape in shapes.items():
            if key.endswith(("gamma", "weight_g")) or (key.endswith("weight") and "norm" in key):
                filled[key] = 1 + self.normal(key, shape, 0.02)
            elif key.endswith("bias"):
                filled[key] = self.normal(key, shape, 0.02)
            else:
                filled[key] = self.linear(key, shape, gain_of(key))
        return filled
