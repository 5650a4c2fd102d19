"""Writing a trained condition in the form of the project that its design comes from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
import re
from typing import Any

import torch
from torch import Tensor

from common.errors import NetworkFileError
from networks.condition_weights import PREFIX, recorded_conditions, split_by_condition
from networks.formats import Entry, LoraFile
from networks.metadata import heard_by
from networks.names import spellings
from networks.published import FORMS, OMNIAVATAR, Form, with_base


@dataclass(frozen=True)
class Publication:
    """A file as another project reads it."""

    form: Form
    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)
    """Content of the config.json beside it; empty where the project has none."""


def publish(file: LoraFile, paths: Iterable[str], base: Callable[[str], Tensor], dtype: torch.dtype) -> Publication:
    """The file's condition, and its LoRA, under the names of the project whose design it is.

    `paths` are the base's modules, `base(name)` gives one of its parameters: where a condition holds the difference
    to the base, both are added up. Raises NetworkFileError where the file holds no condition of another project's
    design, and for what that project's form has no place for.
    """
    found = split_by_condition(file.conditions)
    form = next((form for form in FORMS if form.condition in found), None)
    if form is None or len(found) > 1:
        raise NetworkFileError(f"{file.path}: holds {' and '.join(found) or 'no condition'}; only a file with one of "
                               f"{', '.join(one.condition for one in FORMS)} and nothing beside it can be written in "
                               "another project's form.")
    tensors = {key: tensor if f"{PREFIX}{form.condition}.{key}" in file.whole or key not in form.whole
               else with_base(tensor, base(key)) for key, tensor in found[form.condition].items()}
    config: dict[str, Any] = {}
    _refuse_other_sound(file, form)
    if form is OMNIAVATAR:
        _refuse_other_given_frames(file)
        entries = _by_path(file, paths)
        for path, entry in entries.items():
            tensors[f"{path}.lora_A.default.weight"] = entry.parts["down"]
            tensors[f"{path}.lora_B.default.weight"] = entry.parts["up"]
        config = _omniavatar_config(file, entries, tensors)
    elif file.entries:
        raise NetworkFileError(f"{file.path}: holds a LoRA beside the condition, which a file of {form.layout} has no "
                               "place for. Export a file that was trained without one.")
    return Publication(form, {key: tensor.to(dtype) for key, tensor in tensors.items()}, config)


def _refuse_other_sound(file: LoraFile, form: Form) -> None:
    """The project would hear as it always does. Files from before there were presets were trained on OmniAvatar's."""
    own, theirs = heard_by(file.metadata), heard_by(form.facts)
    if not own:
        return
    own = heard_by(OMNIAVATAR.facts) | own
    for name, wanted in theirs.items():
        if own[name] != wanted:
            raise NetworkFileError(f"{file.path}: was trained on sound with {name} '{own[name]}'; {form.layout} hears "
                                   f"with '{wanted}', and its file has no place to say otherwise. Train on the sound "
                                   f"of cache_audio_features.py --audio_preset {theirs['preset']}.")


def _refuse_other_given_frames(file: LoraFile) -> None:
    mode = recorded_conditions(file.metadata).get(OMNIAVATAR.condition, {}).get("given", "clean_same_t")
    if mode != "clean_same_t":
        raise NetworkFileError(f"{file.path}: was trained with given = {mode}; OmniAvatar shows given frames clean "
                               "under the timestep of the rest, and its file has no place to say otherwise.")


def _by_path(file: LoraFile, paths: Iterable[str]) -> dict[str, Entry]:
    """{path: LoRA pair}; NetworkFileError for what is no pair or of no module."""
    entries = {}
    for path in paths:
        entry = next((file.entries[name] for name in spellings(path) if name in file.entries), None)
        if entry is not None:
            entries[path] = entry
    left = set(file.entries) - {entry.name for entry in entries.values()}
    odd = [entry.keys[0] for entry in entries.values() if set(entry.parts) - {"down", "up", "alpha"}]
    if left or odd:
        raise NetworkFileError(f"{file.path}: '{(sorted(left) + odd)[0]}' has no place in an OmniAvatar file, which "
                               "holds LoRA pairs of the base's linears.")
    return entries


def _omniavatar_config(file: LoraFile, entries: Mapping[str, Entry], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What OmniAvatar's inference reads from the config.json beside the file."""
    sizes = sorted({(entry.rank, entry.scale * entry.rank) for entry in entries.values()})
    if len(sizes) > 1:
        raise NetworkFileError(f"{file.path}: LoRA pairs of several ranks or alphas ({sizes[0]}, {sizes[1]} …); an "
                               "OmniAvatar file has one of each.")
    rank, alpha = sizes[0] if sizes else (0, 0)
    leaves = dict.fromkeys(re.sub(r"^blocks\.\d+\.((self|cross)_attn\.)?", "", path) for path in entries)
    return {"train_architecture": "lora", "lora_rank": rank, "lora_alpha": alpha,
            "lora_target_modules": ",".join(leaves), "init_lora_weights": "kaiming",
            "model_config": {"in_dim": tensors["patch_embedding.weight"].shape[1],
                             "audio_hidden_size": tensors["audio_proj.proj.weight"].shape[0]},
            "use_audio": True, "i2v": True, "random_prefix_frames": True}
