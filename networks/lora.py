"""LoRA on raw modules: each target layer's forward is replaced by one that adds a low-rank product.

y = W x + multiplier * (alpha / rank) * up(down(x)). Weights are float32; the product is computed in the dtype of x by
explicit casts and rounded once to the dtype of W x. `up` starts at zero, so a fresh LoRA leaves the base bit-equal.
The base layer may be any nn.Linear, a quantised one too. Source: kohya's sd-scripts, musubi-tuner `networks/lora.py`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
import math

from jaxtyping import Float
import torch
from torch import Tensor, nn
import torch.nn.functional as F  # noqa: N812

from common.errors import NetworkFileError
from common.seeding import generator
from networks.condition_weights import load_conditions
from networks.formats import Entry, LoraFile
from networks.names import kohya_name, spellings
from networks.report import FileReport


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

    def set_alpha(self, alpha: float) -> None:
        """Change the strength."""
        self.alpha.fill_(alpha)
        self.scale = alpha / self.rank

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
        return torch.addmm(base.reshape(-1, base.shape[-1]), low.reshape(-1, self.rank), up.T, alpha=scale).view_as(base)

    def _skips_module(self) -> bool:
        return self.training and self.dropouts.module > 0 and torch.rand(()).item() < self.dropouts.module

    def _rank_mask(self, low: Tensor) -> Tensor:
        shape = (low.shape[0], *[1] * (low.ndim - 2), self.rank)
        return (torch.rand(shape, device=low.device) > self.dropouts.rank).to(low.dtype)

    def norm(self) -> Tensor:
        """Frobenius norm of (alpha / rank) * up @ down, from r x r matrices alone."""
        up, down = self.lora_up.weight, self.lora_down.weight
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * self.scale


@dataclass(frozen=True)
class NormLimit:
    """What `limit_norms` did."""

    scaled: int
    """Layers whose product was too large."""
    mean: float
    largest: float


class LoraNetwork(nn.Module):
    """All LoRA layers of a model, with the conditions that are trained whole beside them.

    `state_dict()` has the keys of the file: `lora_unet_<path>.lora_down.weight` …, `conditions.<name>.<parameter>`.
    """

    def __init__(self, targets: Mapping[str, nn.Linear], *, sizes: Mapping[str, tuple[int, float]],
                 dropouts: Dropouts = Dropouts(), loraplus_lr_ratio: float | None = None,  # noqa: B008
                 conditions: Mapping[str, nn.Module] | None = None) -> None:
        """`sizes` gives (rank, alpha) for every path of `targets`."""
        super().__init__()
        self.switch = Switch()
        self.loraplus_lr_ratio = loraplus_lr_ratio
        self.layers: dict[str, LoraLayer] = {}
        for path, base in targets.items():
            rank, alpha = sizes[path]
            layer = LoraLayer(base, self.switch, rank=rank, alpha=alpha, dropouts=dropouts)
            self.layers[path] = layer
            assert not hasattr(self, kohya_name(path)), f"two layers are called {kohya_name(path)}"
            self.add_module(kohya_name(path), layer)
        self.conditions = nn.ModuleDict(dict(conditions or {}))

    def reset(self, seed: int) -> None:
        """Initial weights of the LoRA layers; a layer's depend on the seed and its path alone."""
        for path, layer in self.layers.items():
            layer.reset(generator(seed, f"lora {path}"))

    @property
    def multiplier(self) -> float:
        """Strength of the LoRA, 1 as trained. Conditions are not scaled."""
        return self.switch.multiplier

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        self.switch.multiplier = value

    @contextmanager
    def enabled(self, is_on: bool) -> Iterator[None]:
        """Switch the LoRA on or off inside a ``with`` block: student and teacher share one base.

        A pass whose gradient is computed with activation checkpointing must end its backward inside the block.
        """
        before = self.switch.is_on
        self.switch.is_on = is_on
        try:
            yield
        finally:
            self.switch.is_on = before

    def attach(self) -> "LoraNetwork":
        """Act on the model from now on."""
        for layer in self.layers.values():
            layer.attach()
        return self

    def detach(self) -> None:
        """Leave the model as it was."""
        for layer in self.layers.values():
            layer.detach()

    def parameter_groups(self, learning_rate: float) -> list[dict[str, object]]:
        """Groups for an optimiser: `lora`, with LoRA+ `lora plus` (the up matrices at ratio * rate), `conditions`."""
        down = [layer.lora_down.weight for layer in self.layers.values()]
        up = [layer.lora_up.weight for layer in self.layers.values()]
        groups: list[dict[str, object]]
        if self.loraplus_lr_ratio is None:
            both = [weight for pair in zip(down, up, strict=True) for weight in pair]
            groups = [{"name": "lora", "params": both, "lr": learning_rate}]
        else:
            groups = [{"name": "lora", "params": down, "lr": learning_rate},
                      {"name": "lora plus", "params": up, "lr": learning_rate * self.loraplus_lr_ratio}]
        of_conditions = [parameter for parameter in self.conditions.parameters() if parameter.requires_grad]
        groups.append({"name": "conditions", "params": of_conditions, "lr": learning_rate})
        return [group for group in groups if group["params"]]

    def state(self, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Tensors to save, under the file's keys, cast to `dtype` (alphas stay float32; None: as they are)."""
        return {key: tensor.detach() if dtype is None or key.endswith(".alpha") else tensor.detach().to(dtype)
                for key, tensor in self.state_dict().items()}

    def load(self, file: LoraFile) -> FileReport:
        """Start from a file of any layout (`--network_weights`).

        Raises NetworkFileError when nothing fits, a rank differs, or a condition does not fit.
        """
        report = self.load_pairs(file)
        left = len(self.layers) - report.applied
        if report.applied and left:
            report.notes.append(f"{left} of {len(self.layers)} layers are not in the file and start fresh")
        without = load_conditions(self.conditions, file.conditions, file.path)
        report.notes.extend(f"condition '{name}' is not in the file and starts fresh" for name in without)
        report.refuse_if_nothing_fits(has_conditions=bool(file.conditions))
        return report

    def load_pairs(self, file: LoraFile) -> FileReport:
        """The LoRA part of `load`.

        Where the file's alpha / rank differs from the network's, `up` takes up the difference, so that the product is
        the file's.
        """
        claimed: set[str] = set()
        for path, layer in self.layers.items():
            entry = next((file.entries[name] for name in spellings(path) if name in file.entries), None)
            if entry is None or not entry.has_pair:
                continue
            self._load_pair(file, path, layer, entry)
            claimed.add(entry.name)
        unused = [name for name in file.entries if name not in claimed]
        return FileReport(file.path, file.layout, len(claimed), unused, [*file.others], [*file.notes])

    @torch.no_grad()
    def _load_pair(self, file: LoraFile, path: str, layer: LoraLayer, entry: Entry) -> None:
        down, up = entry.parts["down"].float().flatten(1), entry.parts["up"].float().flatten(1)
        if entry.rank != layer.rank:
            raise NetworkFileError(f"{file.path}: rank {entry.rank} at '{path}', the network has {layer.rank}. Set "
                                   f"--network_dim {entry.rank}, or use --dim_from_weights.")
        own = layer.lora_up.weight.shape[0], layer.lora_down.weight.shape[1]
        if (up.shape[0], down.shape[1]) != own:
            raise NetworkFileError(f"{file.path}: made for a layer of {down.shape[1]} -> {up.shape[0]} at '{path}'; "
                                   f"this model's is {own[1]} -> {own[0]}. The file belongs to another base model.")
        layer.lora_down.weight.copy_(down)
        layer.lora_up.weight.copy_(up * (entry.scale / layer.scale))

    @torch.no_grad()
    def limit_norms(self, limit: float) -> NormLimit:
        """Shrink both factors of every pair whose product's norm exceeds `limit` (`--scale_weight_norms`)."""
        if not self.layers:
            return NormLimit(0, 0.0, 0.0)
        norms = torch.stack([layer.norm() for layer in self.layers.values()])
        factors = (limit / norms.clamp(min=limit / 2)).clamp(max=1.0).sqrt()
        for layer, factor in zip(self.layers.values(), factors, strict=True):
            layer.lora_up.weight.mul_(factor)
            layer.lora_down.weight.mul_(factor)
        after = norms * factors**2
        scaled, mean, largest = torch.stack([(factors < 1).sum().to(norms), after.mean(), after.max()]).tolist()
        return NormLimit(int(scaled), mean, largest)
