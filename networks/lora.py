"""A network of LoRA layers."""

from collections.abc import Mapping

from torch import nn

from networks.layer import Dropouts, LoraLayer, Switch
from networks.network import Network, OwnRates


class LoraNetwork(Network):
    """LoRA on chosen linear layers of a model."""

    def __init__(self, targets: Mapping[str, nn.Linear], *, sizes: Mapping[str, tuple[int, float]],
                 dropouts: Dropouts = Dropouts(), rates: OwnRates = OwnRates(),  # noqa: B008
                 conditions: Mapping[str, nn.Module] | None = None) -> None:
        """`sizes` gives (rank, alpha) for every path of `targets`."""
        switch = Switch()
        layers = {path: LoraLayer(base, switch, rank=sizes[path][0], alpha=sizes[path][1], dropouts=dropouts)
                  for path, base in targets.items()}
        super().__init__(layers, switch, rates=rates, conditions=conditions)
