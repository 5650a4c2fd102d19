"""Weights of trained conditions: `conditions.<name>.<parameter>` beside the LoRA keys in one file.

Conditions are plain modules here; who builds them passes them in.
"""

from collections.abc import Mapping
import json
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import NetworkFileError

PREFIX = "conditions."
METADATA_KEY = "omnituner.conditions"


def condition_tensors(conditions: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """{`conditions.<name>.<parameter>`: tensor} of the modules by name."""
    return {f"{PREFIX}{name}.{key}": tensor for name, module in conditions.items()
            for key, tensor in module.state_dict().items()}


def split_by_condition(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """{condition's name: {parameter: tensor}} of the keys that belong to conditions; other keys are passed over."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(PREFIX):
            name, _, parameter = key.removeprefix(PREFIX).partition(".")
            found.setdefault(name, {})[parameter] = tensor
    return found


def load_conditions(conditions: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], where: Any) -> list[str]:
    """Fill the modules from a file's tensors (in the modules' dtype); return the names of those that the file lacks.

    Raises NetworkFileError naming `where` when the file holds a condition that is not among the modules, or one whose
    parameters differ in name or shape (other settings).
    """
    found = split_by_condition(tensors)
    strangers = [name for name in found if name not in conditions]
    if strangers:
        asked = ", ".join(conditions) or "none"
        raise NetworkFileError(f"{where}: holds the condition '{strangers[0]}'; asked for: {asked}. Name it with "
                               f"--network_args conditions={','.join(found)}.")
    for name, parameters in found.items():
        _fill(conditions[name], parameters, f"{where}: condition '{name}'")
    return [name for name in conditions if name not in found]


def _fill(module: nn.Module, parameters: Mapping[str, Tensor], where: str) -> None:
    own = module.state_dict()
    missing = [key for key in own if key not in parameters]
    unexpected = [key for key in parameters if key not in own]
    if missing or unexpected:
        parts = [f"{word} {', '.join(keys[:4])}" for word, keys in (("lacks", missing), ("has unknown", unexpected))
                 if keys]
        raise NetworkFileError(f"{where} {' and '.join(parts)}. It was saved by another version or for another model.")
    for key, tensor in parameters.items():
        if tensor.shape != own[key].shape:
            raise NetworkFileError(f"{where}: {key} is {list(tensor.shape)} in the file and {list(own[key].shape)} "
                                   "here. The settings or the base model differ from those it was trained with.")
    with torch.no_grad():
        for key, tensor in parameters.items():
            own[key].copy_(tensor)


def recorded_conditions(metadata: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """{condition's name: its settings as text} that a file's metadata tells; empty when it tells of none."""
    text = metadata.get(METADATA_KEY)
    if not text:
        return {}
    return {name: {key: str(value) for key, value in settings.items()} for name, settings in json.loads(text).items()}
