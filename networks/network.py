"""A model's trained layers as one network: what trainer and generator know of it, whatever its kind.

The trainer uses: `attach`, `detach`, `enabled`, `multiplier`, `layers` (for their rank and alpha), `conditions`,
`parameter_groups`, `state`, `load`, `limit_norms`, and what every module has. Kinds of networks differ in their layers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
import re

from jaxtyping import Float
import torch
from torch import Tensor, nn

from common.seeding import generator
from networks.condition_weights import load_conditions
from networks.formats import LoraFile
from networks.layer import Layer, Switch
from networks.names import kohya_name, spellings
from networks.report import FileReport


@dataclass(frozen=True)
class NormLimit:
    """What `limit_norms` did. Only reading a figure waits for the device."""

    before: Float[Tensor, " N"]
    """Norm of each layer's change."""
    factors: Float[Tensor, " N"]

    @property
    def scaled(self) -> int:
        """Layers whose product was too large."""
        return int((self.factors < 1 - 1e-6).sum())

    @property
    def largest(self) -> float:
        """The largest norm that is left; 0 without layers."""
        return float((self.before * self.factors).max()) if len(self.before) else 0.0


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
    lr_patterns: tuple[tuple[str, float], ...] = ()
    """(regular expression, rate) of layers in whose path it is found; the first that is decides."""

    def group_of(self, path: str, learning_rate: float) -> tuple[str, float]:
        """(name of the group, rate) of the layer at `path`."""
        found = next(((pattern, rate) for pattern, rate in self.lr_patterns if re.search(pattern, path)), None)
        return ("lora", learning_rate) if found is None else (f"lora {found[0]}", found[1])


class Network(nn.Module):
    """All trained layers of a model, with the conditions that are trained whole beside them.

    `state_dict()` has the keys of the file: `lora_unet_<path>.<parameter>`, `conditions.<name>.<parameter>`.
    """

    def __init__(self, layers: Mapping[str, Layer], switch: Switch, *, rates: OwnRates = OwnRates(),  # noqa: B008
                 conditions: Mapping[str, nn.Module] | None = None) -> None:
        """`layers` by the path of the linear that they act on; all of them obey `switch`."""
        super().__init__()
        self.switch = switch
        self.rates = rates
        self.layers: dict[str, Layer] = {**layers}
        for path, layer in layers.items():
            assert layer.switch is switch
            assert not hasattr(self, kohya_name(path)), f"two layers are called {kohya_name(path)}"
            self.add_module(kohya_name(path), layer)
        self.conditions = nn.ModuleDict(dict(conditions or {}))

    def reset(self, seed: int) -> None:
        """Initial weights of the layers; a layer's depend on the seed and its path alone."""
        for path, layer in self.layers.items():
            layer.reset(generator(seed, f"lora {path}"))

    @property
    def multiplier(self) -> float:
        """Strength of the layers, 1 as trained. Conditions are not scaled."""
        return self.switch.multiplier

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        self.switch.multiplier = value

    @contextmanager
    def enabled(self, is_on: bool) -> Iterator[None]:
        """Switch the layers on or off inside a ``with`` block: student and teacher share one base.

        A pass whose gradient is computed with activation checkpointing must end its backward inside the block.
        """
        before = self.switch.is_on
        self.switch.is_on = is_on
        try:
            yield
        finally:
            self.switch.is_on = before

    def attach(self) -> "Network":
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

        `lora`, with LoRA+ `lora plus` (the up matrices at ratio * rate), both again for each pattern with a rate of its
        own (`lora <pattern>`), `conditions` and their `patch embedding`: see `OwnRates`.
        """
        ratio = self.rates.loraplus_lr_ratio
        rates: dict[str, float] = {}
        members: dict[str, list[nn.Parameter]] = {}

        def add(name: str, rate: float, parameters: list[nn.Parameter]) -> None:
            rates[name] = rate
            members.setdefault(name, []).extend(parameters)

        for path, layer in self.layers.items():
            name, rate = self.rates.group_of(path, learning_rate)
            fast = [] if ratio is None else [*layer.fast()]
            add(name, rate, [one for one in layer.parameters() if not any(one is other for other in fast)])
            if ratio is not None:
                add(name.replace("lora", "lora plus", 1), rate * ratio, fast)
        groups: list[dict[str, object]] = [{"name": name, "params": members[name], "lr": rates[name]}
                                           for name in sorted(members, key=lambda name: (name != "lora", name))]
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
        report = self.load_layers(file)
        left = len(self.layers) - report.applied
        if report.applied and left:
            report.notes.append(f"{left} of {len(self.layers)} layers are not in the file and start fresh")
        without = load_conditions(dict(self.conditions.items()), file.conditions, file.path)
        report.notes.extend(f"condition '{name}' is not in the file and starts fresh" for name in without)
        report.refuse_if_nothing_fits(has_conditions=bool(file.conditions))
        return report

    def load_layers(self, file: LoraFile) -> FileReport:
        """The layers' part of `load`."""
        claimed: set[str] = set()
        for path, layer in self.layers.items():
            entry = next((file.entries[name] for name in spellings(path) if name in file.entries), None)
            if entry is None or not entry.method:
                continue
            layer.load(entry, file.path, path)
            claimed.add(entry.name)
        unused = [name for name in file.entries if name not in claimed]
        return FileReport(file.path, file.layout, len(claimed), unused, [*file.others], [*file.notes])

    @torch.no_grad()
    def limit_norms(self, limit: float) -> NormLimit:
        """Shrink the factors of every layer whose change of the weight exceeds `limit` (`--scale_weight_norms`)."""
        if not self.layers:
            return NormLimit(torch.empty(0), torch.empty(0))
        norms = torch.stack([layer.norm() for layer in self.layers.values()])
        factors = (limit / norms.clamp(min=limit / 2)).clamp(max=1.0)
        for layer, factor in zip(self.layers.values(), factors, strict=True):
            layer.shrink(factor)
        return NormLimit(norms, factors)
