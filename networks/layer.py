"""What stands beside one linear layer: its forward is replaced by one that adds to the result. LoRA is the plain kind.

LoRA: y = W x + multiplier * (alpha / rank) * up(down(x)). Weights are float32; the product is computed in the dtype of
x by explicit casts and rounded once to the dtype of W x. `up` starts at zero, so a fresh LoRA leaves the base as it is.
The base layer may be any nn.Linear, a quantised one too. Source: kohya's sd-scripts, musubi-tuner `networks/lora.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math
from pathlib import Path
from typing import ClassVar, Self

from jaxtyping import Float
import torch
from torch import Tensor, nn
import torch.nn.functional as F  # noqa: N812

from common.errors import NetworkFileError
from common.low_rank import add_low_rank
from networks.entry import Entry


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


class Layer(nn.Module):
    """What is trained beside one linear layer. Its `state_dict` has the keys of the file; `alpha` is one of them.

    A kind says how it adds to the result (`added`), which entries of files it can hold (`kind`, `parts`) and how large
    its change of the weight is (`norm`). Module dropout draws from torch's generator of the CPU, so that activation
    checkpointing repeats it; seed it before each step for runs that can be repeated.
    """

    kind: ClassVar[str]
    """What it calls itself, and of which kind a file's entry must be (`Entry.kind`)."""
    parts: ClassVar[dict[str, str]]
    """{part of a file's entry: parameter} of all kinds of such a layer."""
    zero_at_first: ClassVar[tuple[str, ...]]
    """Parameters of which one starts at zero; it takes up what a file's alpha / rank differs by."""
    multiplied: ClassVar[tuple[str, ...]]
    """Parameters that are factors of the weight's change."""

    alpha: Tensor

    def __init__(self, base: nn.Linear, switch: Switch, *, rank: int, alpha: float,
                 dropouts: Dropouts = Dropouts()) -> None:  # noqa: B008
        """`rank` 0 is that of factors that are whole: they act with strength 1."""
        super().__init__()
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.rank = rank
        self.scale = alpha / rank if rank else 1.0
        self.dropouts = dropouts
        self.switch = switch
        self._base = [base]  # in a list, so that the base's weights are not this module's
        self._plain_forward: Callable[[Tensor], Tensor] | None = None

    @classmethod
    def like(cls, base: nn.Linear, switch: Switch, entry: Entry, dropouts: Dropouts = Dropouts()  # noqa: B008
             ) -> Self:
        """A layer that can hold the entry of a file, with its alpha."""
        return cls(base, switch, rank=entry.rank, alpha=entry.scale * entry.rank, dropouts=dropouts)

    def reset(self, source: torch.Generator) -> None:
        """Initial weights, under which the layer adds nothing."""
        raise NotImplementedError

    def added(self, x: Float[Tensor, "*B I"], base: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """`base`, the plain result for `x`, with this layer's part added at the network's strength."""
        raise NotImplementedError

    def norm(self) -> Tensor:
        """Frobenius norm of the change of the weight at strength 1."""
        raise NotImplementedError

    def fast(self) -> Sequence[nn.Parameter]:
        """Parameters that LoRA+ gives a higher rate; none where the method does not speak of such a kind."""
        return ()

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
        """The base's result with this layer's part added."""
        assert self._plain_forward is not None
        base = self._plain_forward(x)
        if not self.switch.is_on or self._skips_module():
            return base
        return self.added(x, base)

    def _skips_module(self) -> bool:
        return self.training and self.dropouts.module > 0 and torch.rand(()).item() < self.dropouts.module

    @torch.no_grad()
    def load(self, entry: Entry, file: Path, path: str) -> None:
        """Take the weights of a file's entry, so that the change of the weight is the file's, whatever the own alpha.

        NetworkFileError, naming `file` and the layer's `path`, when kind, rank or size differ.
        """
        if entry.kind != self.kind:
            raise NetworkFileError(f"{file}: {entry.kind} at '{path}', and this network trains {self.kind}. "
                                   f"{HOW_TO_TRAIN.get(entry.kind, 'It can be merged only.')}")
        if entry.direct:
            raise NetworkFileError(f"{file}: changes weights or biases directly at '{path}' ("
                                   f"{', '.join(entry.direct)}), which cannot be trained on and would be "
                                   "lost. Merge it with --base_weights.")
        if entry.rank != self.rank and entry.rank and self.rank:
            raise NetworkFileError(f"{file}: rank {entry.rank} at '{path}', the network has {self.rank}. Set "
                                   f"--network_dim {entry.rank}, or use --dim_from_weights.")
        base = self._base[0]
        if entry.size != (base.out_features, base.in_features):
            raise NetworkFileError(f"{file}: made for a layer of {entry.size[1]} -> {entry.size[0]} at '{path}'; this "
                                   f"model's is {base.in_features} -> {base.out_features}. The file belongs to another "
                                   "base model.")
        own = dict(self.named_parameters())
        found = {self.parts[part]: tensor.float().flatten(1) for part, tensor in entry.parts.items() if part != "alpha"}
        if {name: one.shape for name, one in found.items()} != {name: one.shape for name, one in own.items()}:
            theirs, ours = (", ".join(f"{name} {list(one.shape)}" for name, one in group.items())
                            for group in (found, own))
            raise NetworkFileError(f"{file}: holds {theirs} at '{path}'; the network has {ours}. It was made with "
                                   "other settings; --dim_from_weights takes them over.")
        for name, tensor in found.items():
            own[name].copy_(tensor * (entry.scale / self.scale) if name in self.zero_at_first else tensor)

    @torch.no_grad()
    def shrink(self, factor: Tensor) -> None:
        """Multiply the change of the weight by `factor`, spread evenly over its factors."""
        own = dict(self.named_parameters())
        factors = [own[name] for name in self.multiplied if name in own]
        for one in factors:
            one.mul_(factor ** (1 / len(factors)))


HOW_TO_TRAIN = {
    "LoRA": "Train on with --network_module networks.lora_wan.",
    "DoRA": "Train on with --network_module networks.lycoris_wan --network_args algo=dora.",
    "LoHa": "Train on with --network_module networks.lycoris_wan --network_args algo=loha.",
    "LoKr": "Train on with --network_module networks.lycoris_wan --network_args algo=lokr.",
}


class LoraLayer(Layer):
    """The low-rank product beside one linear layer, saved as `lora_down.weight` `r I`, `lora_up.weight` `O r`, `alpha`.

    Dropouts draw from torch's global generator of the tokens' device (module dropout: the CPU's).
    """

    kind = "LoRA"
    parts = {"down": "lora_down.weight", "up": "lora_up.weight"}
    zero_at_first = ("lora_up.weight",)
    multiplied = ("lora_up.weight", "lora_down.weight")

    def __init__(self, base: nn.Linear, switch: Switch, *, rank: int, alpha: float,
                 dropouts: Dropouts = Dropouts()) -> None:  # noqa: B008
        super().__init__(base, switch, rank=rank, alpha=alpha, dropouts=dropouts)
        self.lora_down = nn.Linear(base.in_features, rank, bias=False, dtype=torch.float32)
        self.lora_up = nn.Linear(rank, base.out_features, bias=False, dtype=torch.float32)

    def reset(self, source: torch.Generator) -> None:
        """Initial weights: down uniform within ±1/sqrt(I) (Kaiming, a = sqrt 5), up zero."""
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5), generator=source)
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        """The base's result with the product added: by the base itself where it can do that as it multiplies."""
        assert self._plain_forward is not None
        is_alone = getattr(self._plain_forward, "__self__", None) is self._base[0]  # no other layer in between
        together = getattr(self._base[0], "forward_with", None) if is_alone else None
        if together is None:
            return super().forward(x)
        if not self.switch.is_on or self._skips_module():
            return self._plain_forward(x)
        low, scale = self.low(x)
        result: Tensor = together(x, low, self.lora_up.weight.to(x.dtype), scale * self.switch.multiplier)
        return result

    def added(self, x: Float[Tensor, "*B I"], base: Float[Tensor, "*B O"]) -> Float[Tensor, "*B O"]:
        """`base` with the product added."""
        low, scale = self.low(x)
        scale = scale * self.switch.multiplier
        up = self.lora_up.weight.to(x.dtype)
        if base.dtype != low.dtype:
            return base + (F.linear(low, up) * scale).to(base.dtype)
        flat, low = base.reshape(-1, base.shape[-1]), low.reshape(-1, self.rank)
        # No second tensor of the output's size, and one rounding.
        total = add_low_rank(flat, low, up, scale) if base.is_cuda else torch.addmm(flat, low, up.T, alpha=scale)
        return total.view_as(base)

    def low(self, x: Float[Tensor, "*B I"]) -> tuple[Float[Tensor, "*B r"], float]:
        """What `up` is given, after dropouts, and what its result is to be multiplied by."""
        low, scale = F.linear(x, self.lora_down.weight.to(x.dtype)), self.scale
        if self.training:
            low = F.dropout(low, self.dropouts.activation)
            if self.dropouts.rank > 0:
                low = low * self._rank_mask(low)
                scale = scale / (1 - self.dropouts.rank)
        return low, scale

    def _rank_mask(self, low: Tensor) -> Tensor:
        shape = (low.shape[0], *[1] * (low.ndim - 2), self.rank)
        return (torch.rand(shape, device=low.device) > self.dropouts.rank).to(low.dtype)

    def norm(self) -> Tensor:
        """Frobenius norm of (alpha / rank) * up @ down, from r x r matrices alone."""
        up, down = self.lora_up.weight, self.lora_down.weight
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * self.scale

    def fast(self) -> Sequence[nn.Parameter]:
        """The up matrix."""
        return (self.lora_up.weight,)
