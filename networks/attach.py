"""Networks made from a file: attached to a model for generation, or trained on with the file's own ranks."""

import os

from torch import nn

from common.errors import NetworkFileError
from networks.formats import LoraFile, read_lora
from networks.layer import Dropouts
from networks.lora import LoraNetwork, OwnRates
from networks.names import spellings
from networks.report import FileReport


def sizes_in_file(model: nn.Module, file: LoraFile) -> dict[str, tuple[int, float]]:
    """{path: (rank, alpha)} of the model's linear layers that the file has a pair for; alpha = scale * rank."""
    sizes = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        entry = next((file.entries[name] for name in spellings(path) if name in file.entries), None)
        if entry is not None and entry.has_pair:
            sizes[path] = entry.rank, entry.scale * entry.rank
    return sizes


def network_from_sizes(model: nn.Module, sizes: dict[str, tuple[int, float]], *,
                       dropouts: Dropouts = Dropouts(), rates: OwnRates = OwnRates(),  # noqa: B008
                       conditions: dict[str, nn.Module] | None = None) -> LoraNetwork:
    """A network on the layers that `sizes` names."""
    targets = {}
    for path in sizes:
        module = model.get_submodule(path)
        assert isinstance(module, nn.Linear)
        targets[path] = module
    return LoraNetwork(targets, sizes=sizes, dropouts=dropouts, rates=rates, conditions=conditions)


def attach_lora(model: nn.Module, file: LoraFile | str | os.PathLike[str], multiplier: float = 1.0
                ) -> tuple[LoraNetwork, FileReport]:
    """Attach a LoRA of any layout to a loaded model, whatever its dtype; `.detach()` leaves the model as it was.

    Raises NetworkFileError when nothing fits, and for files with deltas of whole weights, which can only be merged.
    Trained conditions in the file are not this function's affair.
    """
    file = file if isinstance(file, LoraFile) else read_lora(file)
    deltas = [entry.keys[0] for entry in file.entries.values() if set(entry.parts) - {"down", "up", "alpha"}]
    if deltas:
        raise NetworkFileError(f"{file.path}: changes {len(deltas)} weights or biases directly ('{deltas[0]}' …); such "
                               "a file can only be merged into the base, not attached.")
    network = network_from_sizes(model, sizes_in_file(model, file))
    report = network.load_pairs(file)
    report.refuse_if_nothing_fits(has_conditions=bool(file.conditions))
    network.multiplier = multiplier
    network.requires_grad_(False).eval()
    device = next(model.parameters()).device
    return network.to(device).attach(), report
