"""DoRA, LoHa and LoKr for Wan: the network module `networks.lycoris_wan`, with `--network_args algo=…`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from common.errors import ConfigError, nearest
from networks.arguments import NetworkArguments, a_number, is_yes
from networks.attach import layers_like, refuse_sizes_beside
from networks.formats import LoraFile
from networks.layer import Dropouts, Layer, LoraLayer, Switch
from networks.lycoris import DoraLayer, LohaLayer, LokrLayer, lokr_shapes
from networks.network import Network
from networks.sizes import Planned, chosen_sizes, chosen_targets, tell_targets

ALGORITHMS: dict[str, type[Layer]] = {
    "loha": LohaLayer,
    "lokr": LokrLayer,
    "dora": DoraLayer,
    "locon": LoraLayer,
}
"""`algo` → kind of layer. LoCon is LoRA where there are no convolutions."""


@dataclass(frozen=True)
class LycorisArguments(NetworkArguments):
    """`--network_args` of this module."""

    algo: str = ""
    """One of ALGORITHMS."""
    factor: int = -1
    """LoKr: the size of the small matrix; -1 splits each size as evenly as it goes."""
    decompose_both: bool = False
    """LoKr: the small matrix too is a product of two, where that saves something."""
    full_matrix: bool = False
    """LoKr: the large matrix is whole, whatever the rank."""
    dora_wd: bool = False
    """LyCORIS's name for DoRA: with algo=locon (or lora) the same as algo=dora."""

    @classmethod
    def parse(cls, arguments: Mapping[str, str]) -> "LycorisArguments":
        """As NetworkArguments, and ConfigError for what the chosen algorithm does not read."""
        known = super().parse(arguments)
        if known.algo == "":
            raise ConfigError(f"network_args: networks.lycoris_wan needs algo={'|'.join(ALGORITHMS)}, such as "
                              "algo=lokr.")
        if known.dora_wd and known.algo not in ("locon", "dora"):
            raise ConfigError(f"network_args: dora_wd with algo={known.algo}. DoRA is trained over LoRA alone: "
                              "algo=dora.")
        if known.algo != "lokr" and (idle := [one for one in ("factor", "decompose_both", "full_matrix")
                                              if one in arguments]):
            raise ConfigError(f"network_args: {idle[0]} belongs to algo=lokr; with algo={known.algo} it does nothing.")
        if known.algo in ("loha", "lokr") and (idle := [one for one in ("rank_dropout", "loraplus_lr_ratio")
                                                        if one in arguments]):
            raise ConfigError(f"network_args: {idle[0]} speaks of LoRA's two matrices, which algo={known.algo} does "
                              "not have. Leave it out; module_dropout works.")
        return known

    @classmethod
    def value(cls, name: str, text: str) -> object:
        """The value of one argument."""
        if name == "algo":
            algo = {"lora": "locon"}.get(text.lower(), text.lower())
            if algo not in ALGORITHMS:
                raise ConfigError(f"network_args: algo = '{text}' is not offered{nearest(algo, ALGORITHMS)}. Use "
                                  f"{', '.join(ALGORITHMS)}.")
            return algo
        if name == "factor":
            number = a_number(name, text)
            if number != int(number) or not (number == -1 or number >= 1):
                raise ConfigError(f"network_args: factor = {text}; expected a whole number above 0, or -1.")
            return int(number)
        if name in ("decompose_both", "full_matrix", "dora_wd"):
            return is_yes(text)
        return super().value(name, text)

    @property
    def layer(self) -> type[Layer]:
        """Kind of layer."""
        return DoraLayer if self.dora_wd else ALGORITHMS[self.algo]


def create_network(model: nn.Module, *, dim: int | None = None, alpha: float = 1.0, dropout: float | None = None,
                   args: Mapping[str, str] | None = None, conditions: Mapping[str, nn.Module] | None = None,
                   sizes_from: LoraFile | None = None, seed: int = 0) -> Network:
    """A fresh network of the kind that `args` name; see `networks.lora_wan.create_network` for the rest."""
    arguments = LycorisArguments.parse(args or {})
    _refuse_dropout(arguments, dropout)
    dropouts = Dropouts(dropout or 0.0, arguments.rank_dropout, arguments.module_dropout)
    switch = Switch()
    if sizes_from is not None:
        refuse_sizes_beside(args or {})
        layers = layers_like(model, sizes_from, switch, (arguments.layer,), dropouts)
    else:
        targets = chosen_targets(model, arguments)
        sizes = chosen_sizes(targets, arguments, dim, alpha)
        make = _maker(arguments)
        layers = {path: make(base, switch, rank=sizes[path][0], alpha=sizes[path][1], dropouts=dropouts)
                  for path, base in targets.items()}
        tell_targets(layers, arguments, arguments.layer.kind)
    network = Network(layers, switch, rates=arguments.rates, conditions=conditions)
    network.reset(seed)
    return network


def check_arguments(model: nn.Module, args: Mapping[str, str], dropout: float | None = None) -> None:
    """Refuse arguments and patterns that `create_network` would refuse; `model` may be on the meta device."""
    arguments = LycorisArguments.parse(args)
    _refuse_dropout(arguments, dropout)
    chosen_targets(model, arguments)


def plan(model: nn.Module, args: Mapping[str, str], dim: int | None) -> Planned:
    """What `create_network` would make."""
    arguments = LycorisArguments.parse(args)
    sizes = chosen_sizes(chosen_targets(model, arguments), arguments, dim, 1.0)
    return Planned(arguments.layer.kind, {path: rank for path, (rank, _) in sizes.items()})


def _maker(arguments: LycorisArguments) -> Callable[..., Layer]:
    """Constructor of one layer."""
    if arguments.layer is not LokrLayer:
        return arguments.layer

    def make(base: nn.Linear, switch: Switch, *, rank: int, alpha: float, dropouts: Dropouts) -> Layer:
        shapes = lokr_shapes(base, rank, factor=arguments.factor, decompose_both=arguments.decompose_both,
                             full_matrix=arguments.full_matrix)
        if "lokr_w1" in shapes and "lokr_w2" in shapes:
            alpha = float(rank)  # as LyCORIS writes it: whole factors act with strength 1
        return LokrLayer(base, switch, rank=rank, alpha=alpha, shapes=shapes, dropouts=dropouts)

    return make


def _refuse_dropout(arguments: LycorisArguments, dropout: float | None) -> None:
    if dropout and arguments.algo in ("loha", "lokr"):
        raise ConfigError(f"--network_dropout {dropout:g} drops LoRA's rank activations, which algo={arguments.algo} "
                          "does not have. Leave it out; --network_args module_dropout=0.1 works.")
