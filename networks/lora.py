"""A model's LoRA layers as one network: strength, switching, parameter groups, loading, norm limit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import NetworkFileError
from common.seeding import generator
from networks.condition_weights import load_conditions
from networks.formats import Entry, LoraFile
from networks.layer import Dropouts, LoraLayer, Switch
from networks.names import kohya_name, spellings
from networks.report import FileReport


@dataclass(frozen=True)
class NormLimit:
    """What `limit_norms` did."""

    scaled: int
    """Layers whose product was too large."""
    mean: float
    largest: float


@dataclass(frozen=True)
class OwnRates:
    """Learning rates that differ from the network's; None: they do not."""

    loraplus_lr_ratio: float | None = None
    """LoRA+: the up matrices learn at this multiple of the rate."""
    condition_lr: float | None = None
    """Rate of the conditions."""
    patch_lr: float | None = None
    """Rate of the conditions' patch embeddings; None is `condition_lr`. They act on every token of every frame, so a
    rate that suits the rest of a condition can spoil the picture (OmniAvatar's reconstructions train them at a tenth).
    """


class LoraNetwork(nn.Module):
    """All LoRA layers of a model, with the conditions that are trained whole beside them.

    `state_dict()` has the keys of the file: `lora_unet_<path>.lora_down.weight` …, `conditions.<name>.<parameter>`.
    """

    def __init__(self, targets: Mapping[str, nn.Linear], *, sizes: Mapping[str, tuple[int, float]],
                 dropouts: Dropouts = Dropouts(), rates: OwnRates = OwnRates(),  # noqa: B008
                 conditions: Mapping[str, nn.Module] | None = None) -> None:
        """`sizes` gives (rank, alpha) for every path of `targets`."""
        super().__init__()
        self.switch = Switch()
        self.rates = rates
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
        """Groups for an optimiser, those without parameters left out.

        `lora`, with LoRA+ `lora plus` (the up matrices at ratio * rate), `conditions` and their `patch embedding`: see
        `OwnRates`.
        """
        down = [layer.lora_down.weight for layer in self.layers.values()]
        up = [layer.lora_up.weight for layer in self.layers.values()]
        groups: list[dict[str, object]]
        if self.rates.loraplus_lr_ratio is None:
            both = [weight for pair in zip(down, up, strict=True) for weight in pair]
            groups = [{"name": "lora", "params": both, "lr": learning_rate}]
        else:
            groups = [{"name": "lora", "params": down, "lr": learning_rate},
                      {"name": "lora plus", "params": up, "lr": learning_rate * self.rates.loraplus_lr_ratio}]
        trained = {name: parameter for name, parameter in self.conditions.named_parameters() if parameter.requires_grad}
        patch = {name: parameter for name, parameter in trained.items() if ".patch_embedding." in f".{name}"}
        rate = self.rates.condition_lr or learning_rate
        groups.append({"name": "conditions", "params": [trained[name] for name in trained if name not in patch],
                       "lr": rate})
        groups.append({"name": "patch embedding", "params": [*patch.values()], "lr": self.rates.patch_lr or rate})
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
        without = load_conditions(dict(self.conditions.items()), file.conditions, file.path)
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
