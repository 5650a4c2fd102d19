"""What the factors in a file make of a weight: LoRA, LoHa, LoKr, and DoRA over any of them. Plain float32 algebra.

    LoRA   D = s · up @ down
    LoHa   D = s · (w1_a @ w1_b) ∘ (w2_a @ w2_b)        ∘ by element
    LoKr   D = s · kron(w1, w2)                          w1, w2 whole or a @ b
    DoRA   W' = m · (W + D) / ‖W + D‖                    norms of rows where m is `O 1`, of columns where it is `1 I`

with s = alpha / rank, and 1 for a LoKr of whole factors. Source: LyCORIS 4.1.3 (`functional/`), whose DoRA adds 1.2e-7
to the norms; here they are held above it, so that a fresh DoRA leaves the weight as it is, bit for bit.
"""

from jaxtyping import Float
import torch
from torch import Tensor

from networks.entry import Entry

SMALLEST_NORM = torch.finfo(torch.float32).eps


def factor(entry: Entry, name: str, device: torch.device) -> Float[Tensor, "A B"]:
    """One factor as a float32 matrix: whole, or the product of its two halves."""
    def matrix(part: str) -> Tensor:
        return entry.parts[part].to(device, torch.float32).flatten(1)

    return matrix(name) if name in entry.parts else matrix(f"{name}_a") @ matrix(f"{name}_b")


def change_of_weight(entry: Entry, device: torch.device) -> Float[Tensor, "O I"]:
    """What the entry's factors add to the weight at strength 1; inputs of a convolution with its kernel."""
    if entry.method == "LoRA":
        up, down = (factor(entry, name, device) for name in ("up", "down"))
        return (up @ down) * entry.scale
    if entry.method == "LoHa":
        return factor(entry, "hada_w1", device) * factor(entry, "hada_w2", device) * entry.scale
    return torch.kron(factor(entry, "lokr_w1", device), factor(entry, "lokr_w2", device)) * entry.scale


def with_lengths(weight: Float[Tensor, "O ..."], magnitude: Float[Tensor, "..."]) -> Float[Tensor, "O ..."]:
    """DoRA: `weight`, that is W + D in float32, with its rows (or columns) brought to the lengths `magnitude`."""
    magnitude = magnitude.to(weight.device, torch.float32)
    by_rows = magnitude.shape[0] == weight.shape[0]
    others = [axis for axis in range(weight.ndim) if axis != (0 if by_rows else 1)]
    norms = torch.linalg.vector_norm(weight, dim=others, keepdim=True).clamp(min=SMALLEST_NORM)
    return weight * (magnitude.reshape(norms.shape) / norms)
