"""Merging LoRA files into a base while it streams from disk, before any cast or quantising.

Adding the delta in float32 to the stored weight keeps all of it; added after quantising to fp8 it is rounded away.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
import os

import torch
from torch import Tensor

from common.errors import NetworkFileError
from networks.deltas import change_of_weight, with_lengths
from networks.entry import LOHA, LOKR, Entry
from networks.formats import LoraFile, read_lora
from networks.names import spellings
from networks.report import FileReport

_LEAVES = {"weight": (*LOHA, *LOKR, "down", "diff"), "bias": ("bias", "diff_b"), "modulation": ("diff_m",)}
"""Parts of an entry that change a parameter of this name."""


def delta_of(entry: Entry, leaf: str, base: Tensor) -> Tensor | None:
    """What `entry` adds to the parameter `leaf` of its module, which is `base`, in float32; None when nothing.

    DoRA, which turns the weight as a whole, is the difference to `base`, so that files add up in any order.
    Raises NetworkFileError when the sizes differ.
    """
    parts, total, shape, device = entry.parts, None, base.shape, base.device
    if leaf == "weight" and entry.method:
        change = change_of_weight(entry, device)
        if change.numel() != shape.numel() or change.shape[0] != shape[0]:
            raise NetworkFileError(f"'{entry.keys[0]}' is made for a weight of {list(change.shape)}; this model's is "
                                   f"{list(shape)}. The file belongs to another base model.")
        total = change.reshape(shape)
        if "dora_scale" in parts:
            _check_lengths(entry, shape)
            whole = base.float()
            total = with_lengths(whole + total, parts["dora_scale"]) - whole
    if leaf == "bias" and "bias" in parts:
        total = parts["bias"].to(device, torch.float32) * entry.scale
    direct = parts.get({"weight": "diff", "bias": "diff_b", "modulation": "diff_m"}[leaf])
    if direct is not None:
        direct = direct.to(device, torch.float32)
        total = direct if total is None else total + direct
    if total is not None and total.shape != shape:
        raise NetworkFileError(f"'{entry.keys[0]}' changes a {leaf} of {list(total.shape)}; this model's is "
                               f"{list(shape)}. The file belongs to another base model.")
    return total


def _check_lengths(entry: Entry, shape: torch.Size) -> None:
    lengths = entry.parts["dora_scale"]
    if lengths.numel() not in (shape[0], shape[1]) or lengths.numel() != max(lengths.shape):
        raise NetworkFileError(f"'{entry.keys[0]}' comes with a dora_scale of {list(lengths.shape)}; a weight of "
                               f"{list(shape)} has {shape[0]} rows and {shape[1]} columns. The file is damaged.")


@dataclass
class _Merging:
    file: LoraFile
    multiplier: float
    claimed: dict[str, str] = field(default_factory=dict)
    """File's name of a module → the model's path."""


class LoraMerge:
    """A transform for loaders: called as (name in the model, stored tensor), it returns the tensor with deltas added.

    A tensor that no file changes comes back as the same object. Multiplier 0 changes nothing and counts as applied.
    """

    def __init__(self, files: Sequence[tuple[LoraFile, float]]) -> None:
        self._merging = [_Merging(file, multiplier) for file, multiplier in files]

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        path, _, leaf = name.rpartition(".")
        if leaf not in _LEAVES:
            return tensor
        merged = tensor
        for one in self._merging:
            entry = self._claim(one, path, leaf)
            if entry is None:
                continue
            try:
                delta = delta_of(entry, leaf, tensor)
            except NetworkFileError as error:
                raise NetworkFileError(f"{one.file.path}: {error}") from error
            if delta is not None and one.multiplier != 0:
                merged = merged.float().add(delta, alpha=one.multiplier)
        return merged

    def _claim(self, one: _Merging, path: str, leaf: str) -> Entry | None:
        entry = next((one.file.entries[name] for name in spellings(path) if name in one.file.entries), None)
        if entry is None or not any(part in entry.parts for part in _LEAVES[leaf]):
            return None
        owner = one.claimed.setdefault(entry.name, path)
        if owner != path:
            raise NetworkFileError(f"{one.file.path}: '{entry.name}' could mean '{owner}' or '{path}'. Save it with "
                                   "dotted names.")
        return entry

    def check(self, names: Iterable[str]) -> list[FileReport]:
        """Match against the parameter `names` of a model without loading it; errors as in `reports`."""
        for name in names:
            path, _, leaf = name.rpartition(".")
            if leaf in _LEAVES:
                for one in self._merging:
                    self._claim(one, path, leaf)
        return self.reports()

    def reports(self) -> list[FileReport]:
        """What was applied so far and what was not; NetworkFileError for a file of which nothing was."""
        reports = []
        for one in self._merging:
            file = one.file
            unused = [name for name in file.entries if name not in one.claimed]
            report = FileReport(file.path, file.layout, len(one.claimed), unused, file.others, [*file.notes])
            if file.conditions:
                report.notes.append(f"{len(file.conditions)} tensors belong to trained conditions, which stand apart")
            report.refuse_if_nothing_fits(has_conditions=bool(file.conditions))
            reports.append(report)
        return reports


def merge_transform(files: Sequence[tuple[str | os.PathLike[str], float]],
                    names: Iterable[str] | None = None) -> LoraMerge:
    """Transform for `load_dit` that merges the files, each with its multiplier: W + m * alpha/rank * up @ down.

    With the model's parameter `names` a file that does not fit is refused at once; without, ask for `.reports()` after
    loading. Raises NetworkFileError as `read_lora` does.
    """
    merge = LoraMerge([(read_lora(path), multiplier) for path, multiplier in files])
    if names is not None:
        merge.check(names)
    return merge
