"""Layers made as a file has them: attached to a model for generation, or trained on with the file's own ranks."""

from collections.abc import Mapping, Sequence
import os

from torch import nn

from common.errors import ConfigError, NetworkFileError
from networks.formats import LoraFile, read_lora
from networks.layer import HOW_TO_TRAIN, Dropouts, Layer, LoraLayer, Switch
from networks.lycoris import DoraLayer, LohaLayer, LokrLayer
from networks.names import spellings
from networks.network import Network
from networks.report import FileReport

ATTACHABLE: tuple[type[Layer], ...] = (LoraLayer, DoraLayer, LohaLayer, LokrLayer)
"""Kinds of layers that may run beside a base."""


def layers_like(model: nn.Module, file: LoraFile, switch: Switch, kinds: Sequence[type[Layer]],
                dropouts: Dropouts = Dropouts()) -> dict[str, Layer]:  # noqa: B008
    """{path: layer} of the model's linear layers that the file speaks of, each as the file has it, without weights.

    NetworkFileError for a file that holds another kind than `kinds`.
    """
    by_kind = {kind.kind: kind for kind in kinds}
    layers: dict[str, Layer] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        entry = next((file.entries[name] for name in spellings(path) if name in file.entries), None)
        if entry is None or not entry.method:
            continue
        if entry.kind not in by_kind:
            raise NetworkFileError(f"{file.path}: '{entry.keys[0]}' is {entry.kind}, and {' or '.join(by_kind)} was "
                                   f"expected. {HOW_TO_TRAIN.get(entry.kind, 'It can be merged only.')}")
        layers[path] = by_kind[entry.kind].like(module, switch, entry, dropouts)
    return layers


def refuse_sizes_beside(arguments: Mapping[str, str]) -> None:
    """ConfigError where `--network_args` give ranks or alphas beside those of a file."""
    for name in ("rank_patterns", "alpha_patterns"):
        if name in arguments:
            raise ConfigError(f"network_args: {name} and --dim_from_weights both set sizes. Give one.")


def attach_lora(model: nn.Module, file: LoraFile | str | os.PathLike[str], multiplier: float = 1.0
                ) -> tuple[Network, FileReport]:
    """Attach a network file of any layout to a loaded model, whatever its dtype; `.detach()` leaves it as it was.

    Raises NetworkFileError when nothing fits, and for files with deltas of whole weights, which can only be merged.
    Trained conditions in the file are not this function's affair.
    """
    file = file if isinstance(file, LoraFile) else read_lora(file)
    known = {"alpha", *(part for kind in ATTACHABLE for part in kind.parts)}
    deltas = [entry.keys[0] for entry in file.entries.values() if set(entry.parts) - known]
    if deltas:
        raise NetworkFileError(f"{file.path}: changes {len(deltas)} weights or biases directly ('{deltas[0]}' …); such "
                               "a file can only be merged into the base, not attached.")
    switch = Switch()
    network = Network(layers_like(model, file, switch, ATTACHABLE), switch)
    report = network.load_layers(file)
    report.refuse_if_nothing_fits(has_conditions=bool(file.conditions))
    network.multiplier = multiplier
    network.requires_grad_(False).eval()
    device = next(model.parameters()).device
    return network.to(device).attach(), report
