"""Random numbers for weights that are not there, for timing and memory."""

import torch
from torch import Tensor


def random_weight(name: str, shape: torch.Size, dtype: torch.dtype, device: torch.device | str = "cpu",
                  draws: torch.Generator | None = None) -> Tensor:
    """Gains of norms one, biases zero, the rest normal with a deviation that keeps activations near one.

    So attention differs from key to key, as with trained weights: a GPU that is held back by its power may run faster
    on numbers near zero.
    """
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=dtype, device=device)
    if name.endswith("gamma") or len(shape) == 1:
        return torch.ones(shape, dtype=dtype, device=device)
    scale = 0.02 if "modulation" in name or "embedding" in name else min(0.7 * shape[1:].numel() ** -0.5, 0.02)
    return (torch.randn(shape, device=device, generator=draws) * scale).to(dtype)
