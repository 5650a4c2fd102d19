"""One LoRA layer: a linear layer's forward is replaced by one that adds a low-rank product.

y = W x + multiplier * (alpha / rank) * up(down(x)). Weights are float32; the product is computed in the dtype of x by
explicit casts and rounded once to the dtype of W x. `up` starts at zero, so a fresh LoRA leaves the base bit-equal.
The base layer may be any nn.Linear, a quantised one too. Source: kohya's sd-scripts, musubi-tuner `networks/lora.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
import math

from jaxtyping import Float
import torch
from torch import Tensor, nn
import torch.nn.functional as F  # noqa: N812


@dataclass(frozen=True)
class Dropouts:
    """Shares of what is dropped in training; each draws from torch's own generators (see `LoraLayer`)."""

    activation: float = 0.0
    """Single rank activations (`--network_dropout`)."""
    rank: float = 0.0
    """Whole ranks of a sample."""
    module: float = 0.0
    """The whole layer's addition."""


class Switch:
    """Strength of a network, shared by all its layers."""

    def __init__(self) -> None:
        self.multiplier = 1.0
        self.is_on = True


class LoraLayer(nn.Module):
    """The low-rank product beside one linear layer, saved as `lora_down.weight` `r I`, `lora_up.weight` `O r`, `alpha`.

    Dropouts draw from torch's global generator of the tokens' device (module dropout: the CPU's), so that activation
    checkpointing repeats them; seed it before each step for runs that can be repeated.
    """

    alpha: Tensor

    def __init__(self, base: nn.Linear, switch: Switch, *, rank: int, alpha: float,
                 dropouts: Dropouts = Dropouts()) -> None:  # noqa: B008
        super().__init__()
        self.lora_down = nn.Linear(base.in_features, rank, bias=False, dtype=torch.float32)
        self.lora_up = nn.Linear(rank, base.out_features, bias=False, dtype=torch.float32)
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.rank = rank
        self.scale = alpha / rank
        self.dropouts = dropouts
        self.switch = switch
        self._base = [base]  # in a list, so that the base's weights are not this module's
        self._plain_forward: Callable[[Tensor], Tensor] | None = None

    def reset(self, source: torch.Generator) -> None:
        """Initial weights: down uniform within ±1/sqrt(I) (Kaiming, a = sqrt 5), up zero."""
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5), generator=source)
        nn.init.zeros_(self.lora_up.weight)

    def attach(self) -> None:
        """Put this layer's forward in the place of the base's."""
        if self._plain_forward is None:
            self._plain_forward = self._base[0].forward
            self._base[0].forward = self.forward  # type: ignore[method-assign]

    def detach(self) -> None:
        """Give the base its forward back. Layers attached to the same base later must be detached before."""
        if self._plain_forward is None:
            return
        assert self._base[0].forward == self.forward, "detach in the reverse order of attaching"
        if getattr(self._plain_forward, "__func__", None) is type(self._base[0]).forward:
            del self._base[0].forward  # the class's own method shows again
        else:
            self._base[0].forward = self._plain_forward  # type: ignore[method-assign]
        self._plain_forward = None

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The base's result with the product added."""
        assert self._plain_forward is not None
        base = self._plain_forward(x)
        if not self.switch.is_on or self._skips_module():
            return base
        low = F.linear(x, self.lora_down.weight.to(x.dtype))  # *B r
        scale = self.switch.multiplier * self.scale
        if self.training:
            low = F.dropout(low, self.dropouts.activation)
            if self.dropouts.rank > 0:
                low = low * self._rank_mask(low)
                scale = scale / (1 - self.dropouts.rank)
        up = self.lora_up.weight.to(x.dtype)
        if base.dtype != low.dtype:
            return base + (F.linear(low, up) * scale).to(base.dtype)
        # One kernel: no second tensor of the output's size, and one rounding.
        flat = torch.addmm(base.reshape(-1, base.shape[-1]), low.reshape(-1, self.rank), up.T, alpha=scale)
        return flat.view_as(base)

    def _skips_module(self) -> bool:
        return self.training and self.dropouts.module > 0 and torch.rand(()).item() < self.dropouts.module

    def _rank_mask(self, low: Tensor) -> Tensor:
        shape = (low.shape[0], *[1] * (low.ndim - 2), self.rank)
        return (torch.rand(shape, device=low.device) > self.dropouts.rank).to(low.dtype)

    def norm(self) -> Tensor:
        """Frobenius norm of (alpha / rank) * up @ down, from r x r matrices alone."""
        up, down = self.lora_up.weight, self.lora_down.weight
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * self.scale
