"""LoRA for Wan: the network module that `--network_module networks.lora_wan` names."""

from collections.abc import Mapping

from torch import nn

from networks.arguments import NetworkArguments
from networks.attach import layers_like, refuse_sizes_beside
from networks.formats import LoraFile
from networks.layer import Dropouts, LoraLayer, Switch
from networks.lora import LoraNetwork
from networks.network import Network
from networks.sizes import Planned, chosen_sizes, chosen_targets, tell_targets


def create_network(model: nn.Module, *, dim: int | None = None, alpha: float = 1.0, dropout: float | None = None,
                   args: Mapping[str, str] | None = None, conditions: Mapping[str, nn.Module] | None = None,
                   sizes_from: LoraFile | None = None, seed: int = 0) -> Network:
    """A fresh LoRA on the linears of the model's blocks; call `.attach()` to let it act.

    `dim` is the rank (default 4), alpha 0 means alpha = rank. `args` are the texts of `--network_args`
    (`networks.base.split_network_args`); `conditions` the modules that are trained whole and saved beside the LoRA.
    `sizes_from` takes layers, ranks and alphas from a file (`--dim_from_weights`); load the file afterwards.
    Raises ConfigError for wrong arguments or patterns.
    """
    arguments = NetworkArguments.parse(args or {})
    dropouts = Dropouts(dropout or 0.0, arguments.rank_dropout, arguments.module_dropout)
    network: Network
    if sizes_from is not None:
        refuse_sizes_beside(args or {})
        switch = Switch()
        layers = layers_like(model, sizes_from, switch, (LoraLayer,), dropouts)
        network = Network(layers, switch, rates=arguments.rates, conditions=conditions)
    else:
        targets = chosen_targets(model, arguments)
        tell_targets(targets, arguments, LoraLayer.kind)
        network = LoraNetwork(targets, sizes=chosen_sizes(targets, arguments, dim, alpha), dropouts=dropouts,
                              rates=arguments.rates, conditions=conditions)
    network.reset(seed)
    return network


def check_arguments(model: nn.Module, args: Mapping[str, str], dropout: float | None = None) -> None:
    """Refuse arguments and patterns that `create_network` would refuse; `model` may be on the meta device."""
    chosen_targets(model, NetworkArguments.parse(args))


def plan(model: nn.Module, args: Mapping[str, str], dim: int | None) -> Planned:
    """What `create_network` would make."""
    arguments = NetworkArguments.parse(args)
    sizes = chosen_sizes(chosen_targets(model, arguments), arguments, dim, 1.0)
    return Planned(LoraLayer.kind, {path: rank for path, (rank, _) in sizes.items()})
