"""Reading LoRA files of every layout in the wild into one form; what cannot be used is refused or listed.

The layout is told by the keys and the metadata, never by the file's name. Which of the model's modules an entry
belongs to is decided later, against the model (`networks.names`, `networks.merge`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
import json
import math
import os
from pathlib import Path
import re
from typing import Any

from torch import Tensor

from common.errors import NetworkFileError, UserError
from networks.condition_weights import PREFIX as CONDITION_PREFIX
from networks.entry import LOHA, LOKR, Entry, check_entry
from networks.published import OMNIAVATAR, find_published, without_base

_PAIR = re.compile(r"^(?P<stem>.+?)[._]lora[._](?P<side>A|B|down|up)(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?"
                   r"(?P<leaf>\.weight|\.bias)?$")
_MAGNITUDE = re.compile(r"^(?P<stem>.+)\.lora_magnitude_vector(?:\.(?P<adapter>(?!weight$)[^.]+))?(?:\.weight)?$")
_PARTS = {".alpha": "alpha", ".diff": "diff", ".diff_b": "diff_b", ".diff_m": "diff_m", ".w_norm": "diff",
          ".b_norm": "diff_b", ".dora_scale": "dora_scale", **{f".{part}": part for part in (*LOHA, *LOKR)}}
_SIDES = {"A": "down", "down": "down", "B": "up", "up": "up"}

_PREFIXES = {
    "lora_unet__": "VideoX-Fun",
    "lora_unet_": "kohya/musubi-tuner",
    "lycoris_": "LyCORIS",
    "base_model.model.": "PEFT",
    "model.diffusion_model.": "ComfyUI",
    "diffusion_model.": "ComfyUI",
    "transformer.": "diffusers",
    "pipe.dit.": "DiffSynth",
    "module.": "DiffSynth",
    "model.": "DiffSynth",
    "dit.": "DiffSynth",
}
"""What stands before a module's name, longest first where one begins another, and whose habit it is."""

_WRAPPERS = ("base_model.model.", "module.", "model.")
"""Prefixes behind which another one may stand."""

RELEASED_RANK, RELEASED_ALPHA = 128, 64
"""OmniAvatar's LoRA, whose alpha stands in no tensor."""

_REFUSED = {
    ("lora_mid", "hada_t1", "hada_t2", "lokr_t1", "lokr_t2"):
        "a Tucker decomposition of convolutions (LoCon, LoHa or LoKr with a middle tensor). A Wan block has none, so "
        "it was made for another model, or with use_tucker; use a file made without",
    ("oft_blocks", "oft_diag", "glora", ".a1.weight", "set_weight", "reshape_weight"):
        "of a kind that is not supported (OFT, GLoRA, reshaped weights). Use LoRA, DoRA, LoHa or LoKr",
    ("transformer_2.", "diffusion_model.transformer_1."):
        "for two experts (Wan 2.2 A14B). These models come later; use a file for Wan 2.1",
}


@dataclass
class LoraFile:
    """A network file as read."""

    path: Path
    layout: str
    """Whose habit the names follow, for reports."""
    entries: dict[str, Entry]
    """By the module's name as the file spells it, without prefix."""
    conditions: dict[str, Tensor]
    """Weights of trained conditions, under their full keys (`conditions.<name>.…`)."""
    others: list[str]
    """Keys that are none of these."""
    metadata: dict[str, str]
    notes: list[str] = field(default_factory=list)
    """Sentences that a user should see, such as an unknown alpha."""
    whole: tuple[str, ...] = ()
    """Keys of `conditions` that hold the base's parameter and the difference to it added up (see `relative_to`)."""

    def relative_to(self, base: Callable[[str], Tensor]) -> "LoraFile":
        """The file with every parameter that was written whole as the difference to `base(name)`; itself if none is.

        NetworkFileError where the base is of another width.
        """
        if not self.whole:
            return self
        conditions = dict(self.conditions)
        for key in self.whole:
            name = key.removeprefix(CONDITION_PREFIX).partition(".")[2]
            try:
                conditions[key] = without_base(conditions[key], base(name))
            except ValueError as error:
                raise NetworkFileError(f"{self.path}: {name} is {error}. The file belongs to another base model."
                                       ) from error
        return replace(self, conditions=conditions, whole=())


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Read a file (.safetensors, or a pickle .pt/.pth/.bin without code) or a folder that PEFT or OmniAvatar saved.

    Raises NetworkFileError for kinds other than LoRA, DoRA, LoHa and LoKr, for half a pair, and when none of them is in
    it.
    """
    file = find_file(path)
    tensors, metadata = _load(file)
    conditions = {key: tensor for key, tensor in tensors.items() if key.startswith(CONDITION_PREFIX)}
    tensors = {key: tensor for key, tensor in tensors.items() if key not in conditions}
    _refuse_other_kinds(file, tensors)
    entries, others, layouts = _entries(file, tensors)
    lora = LoraFile(file, " + ".join(layouts) or "OmniTuner", entries, conditions, others, metadata)
    published = find_published({_strip(key)[0]: tensors[key] for key in others}, file)
    if published is not None:
        if conditions:
            raise NetworkFileError(f"{file}: holds conditions under our names and {published.form.layout}'s; keep one.")
        lora = replace(lora, layout=published.form.layout, conditions=published.conditions, others=[],
                       metadata={**metadata, **published.metadata}, whole=published.whole)
        _refuse_gaps(lora)
    if not lora.entries and not lora.conditions:
        raise NetworkFileError(f"{file}: no LoRA in it; its first keys are {', '.join(list(tensors)[:3])}. Expected "
                               "names such as lora_unet_blocks_0_self_attn_q.lora_down.weight.")
    _set_default_scales(lora)
    return lora


def _refuse_gaps(lora: LoraFile) -> None:
    """NetworkFileError where a block lacks a pair that another block has: such a file was cut short."""
    by_block: dict[int, set[str]] = {}
    for name in lora.entries:
        match = re.match(r"blocks\.(\d+)\.(.+)$", name)
        if match:
            by_block.setdefault(int(match[1]), set()).add(match[2])
    everywhere = set().union(*by_block.values())
    missing = [f"blocks.{i}.{leaf}" for i in range(max(by_block, default=-1) + 1)
               for leaf in sorted(everywhere - by_block.get(i, set()))]
    if missing:
        raise NetworkFileError(f"{lora.path}: a file of {lora.layout} without the LoRA of {len(missing)} layers "
                               f"({', '.join(missing[:4])}). The file is incomplete; copy or download it again.")


def find_file(path: str | os.PathLike[str]) -> Path:
    """The file itself: `path`, or the one network file in the folder `path`. NetworkFileError when there is none."""
    path = Path(path)
    if path.is_dir():
        names = ("adapter_model.safetensors", "adapter_model.bin", "pytorch_lora_weights.safetensors",
                 "pytorch_model.pt")
        found = [path / name for name in names if (path / name).is_file()] or sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise NetworkFileError(f"{path}: {len(found)} LoRA files in this folder; name one file.")
        return found[0]
    if not path.is_file():
        raise NetworkFileError(f"{path}: no such LoRA file.")
    return path


def _load(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if file.suffix == ".safetensors":
        from common.tensorfile import load_tensors

        try:
            return load_tensors(file)
        except UserError as error:
            raise NetworkFileError(str(error)) from error
    import pickle

    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        # torch's own text advises to load the file without its guard against code.
        raise NetworkFileError(f"{file}: cannot be read as tensors. It is no weights file or damaged, or it holds "
                               "code, and a file that holds code is refused; ask for a .safetensors file.") from error
    while isinstance(found, dict) and set(found) & {"state_dict", "module", "model"} and len(found) <= 3:
        found = next(found[key] for key in ("state_dict", "module", "model") if key in found)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise NetworkFileError(f"{file}: holds no plain mapping of names to tensors.")
    return found, {}


def _refuse_other_kinds(file: Path, tensors: Mapping[str, Tensor]) -> None:
    for marks, reason in _REFUSED.items():
        hit = next((key for key in tensors for mark in marks if mark in key), None)
        if hit:
            raise NetworkFileError(f"{file}: is {reason}. (It has the key '{hit}'.)")


def _strip(key: str) -> tuple[str, str | None]:
    """(key without its prefixes, whose habit they are)."""
    layout = None
    for prefix, habit in _PREFIXES.items():
        if key.startswith(prefix):
            key, layout = key.removeprefix(prefix), layout or habit
            if prefix not in _WRAPPERS:
                break
    return key, layout


def _split(key: str) -> tuple[str, str, str] | None:
    """(module's name, part, adapter) of a key without prefix; None when it is of no LoRA."""
    for suffix, part in _PARTS.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), part, ""
    length = _MAGNITUDE.match(key)
    if length is not None:
        return length["stem"], "dora_scale", length["adapter"] or ""
    match = _PAIR.match(key)
    if match is None:
        return None
    side = _SIDES[match["side"]]
    if match["leaf"] == ".bias":
        return (match["stem"], "bias", match["adapter"] or "") if side == "up" else None
    return match["stem"], side, match["adapter"] or ""


def _entries(file: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Entry], list[str], list[str]]:
    entries: dict[str, Entry] = {}
    others, layouts, adapters = [], [], set()
    for key, tensor in tensors.items():
        stripped, layout = _strip(key)
        split = _split(stripped)
        if split is None:
            others.append(key)
            continue
        name, part, adapter = split
        entry = entries.setdefault(name, Entry(name))
        if part in entry.parts:
            raise NetworkFileError(f"{file}: names '{entry.keys[-1]}' and '{key}' say the same thing twice.")
        entry.parts[part] = tensor
        entry.keys.append(key)
        if part in ("down", "up"):
            adapters.add(adapter)
        layout = layout or ("DiffSynth" if adapter else "bare names")
        if layout not in layouts:
            layouts.append(layout)
    if len(adapters) > 1:
        raise NetworkFileError(f"{file}: holds {len(adapters)} adapters ({', '.join(sorted(adapters))}); save each to "
                               "a file of its own.")
    for name in [name for name, entry in entries.items() if set(entry.parts) == {"alpha"}]:
        others.extend(entries.pop(name).keys)
    for entry in entries.values():
        check_entry(entry, file)
    return entries, others, layouts


def _set_default_scales(lora: LoraFile) -> None:
    """Scale of pairs without an alpha tensor: from the metadata or the settings file beside, else 1."""
    lacking = [entry for entry in lora.entries.values() if entry.rank and "alpha" not in entry.parts]
    if not lacking:
        return
    settings = _adapter_settings(lora)
    if settings is None:
        if lora.layout == OMNIAVATAR.layout:
            _set_released_scale(lora, lacking)
        if lora.layout in ("bare names", "PEFT"):
            lora.notes.append("no alpha in the file and no settings beside it: strength 1 assumed (VideoX-Fun's "
                              "scripts train at 0.5, so that such a file needs a multiplier of 0.5)")
        return
    if lora.layout == OMNIAVATAR.layout:
        _check_rank(lora, lacking, settings)
    alphas = settings.get("alpha_pattern") or {}
    for entry in lacking:
        fits = [value for pattern, value in alphas.items() if re.search(rf"(^|\.){pattern}$", entry.name)]
        alpha = float(fits[0] if fits else settings["lora_alpha"])
        entry.default_scale = alpha / (math.sqrt(entry.rank) if settings.get("use_rslora") else entry.rank)


def _check_rank(lora: LoraFile, lacking: list[Entry], settings: Mapping[str, Any]) -> None:
    """The config.json beside an OmniAvatar file must be that file's."""
    ranks = sorted({entry.rank for entry in lacking})
    told = settings.get("lora_rank")
    if told is not None and ranks != [told]:
        raise NetworkFileError(f"{lora.path}: LoRA pairs of rank {', '.join(map(str, ranks))}, and the config.json "
                               f"beside it tells of rank {told}. It belongs to another file.")
    lora.notes.append(f"rank {', '.join(map(str, ranks))}, alpha {settings['lora_alpha']:g} (config.json)")


def _set_released_scale(lora: LoraFile, lacking: list[Entry]) -> None:
    """OmniAvatar's published alpha for its published rank, where no config.json says otherwise."""
    ranks = sorted({entry.rank for entry in lacking})
    if ranks != [RELEASED_RANK]:
        raise NetworkFileError(f"{lora.path}: an OmniAvatar file of rank {', '.join(map(str, ranks))} keeps lora_alpha "
                               "in the config.json beside it, and there is none. Put both into one folder.")
    for entry in lacking:
        entry.default_scale = RELEASED_ALPHA / RELEASED_RANK
    lora.notes.append(f"no config.json beside the file: alpha {RELEASED_ALPHA} for rank {RELEASED_RANK}, as published")


def _adapter_settings(lora: LoraFile) -> dict[str, Any] | None:
    """The first settings that name `lora_alpha`: metadata of diffusers or finetrainers, or a JSON file beside."""
    texts = [lora.metadata.get("lora_adapter_metadata"), lora.metadata.get("lora_config")]
    for name in ("adapter_config.json", "config.json"):
        beside = lora.path.with_name(name)
        if beside.is_file():
            texts.append(beside.read_text(encoding="utf-8"))
    for text in texts:
        try:
            settings = json.loads(text) if text else None
        except ValueError:
            continue
        if isinstance(settings, dict):
            settings = {key.removeprefix("transformer."): value for key, value in settings.items()}
            if settings.get("lora_alpha") is not None:
                return settings
    return None
