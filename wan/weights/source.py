"""One view on weights in any layout: prefixes are gone, fp8 scales are joined to their weights, shards are one."""

from collections.abc import Iterator, Sequence
import json
import os
from pathlib import Path

import torch
from torch import Tensor

from common.errors import WeightsError
from wan.memory.fp8 import FP8_DTYPES, Quantised, dequantise
from wan.weights.files import TensorFile, open_tensor_file
from wan.weights.shards import find_files

PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What ComfyUI and its kin put before a DiT's names."""
OTHER_PARTS = ("text_encoders.", "vae.", "first_stage_model.", "cond_stage_model.", "conditioner.")
"""The other models of an all-in-one checkpoint, left out of the view on its DiT."""
SCALE_SUFFIXES = (".scale_weight", ".weight_scale")
"""ComfyUI's older and newer name of the scale of `X.weight`; musubi-tuner writes the first one too."""
COMPANION_SUFFIXES = (".scale_input", ".input_scale", ".comfy_quant")
MARKER = "scaled_fp8"
READABLE_FORMATS = ("float8_e4m3fn", "float8_e5m2")


class WeightsSource:
    """Tensors by name, read one at a time. Close it, or use it in a `with` block."""

    def __init__(self, path: Path, files: Sequence[TensorFile]) -> None:
        self.path = path
        self.files = tuple(files)
        self.metadata: dict[str, str] = {}
        places: dict[str, TensorFile] = {}
        for file in self.files:
            self.metadata.update(file.metadata)
            doubled = places.keys() & file.entries.keys()
            if doubled:
                raise WeightsError(f"{file.path}: repeats tensors of another shard ({min(doubled)}). Remove the file "
                                   "that does not belong to the set.")
            places.update(dict.fromkeys(file.entries, file))
        self._places = places
        self._scales, companions = _pair_scales(self)
        self.prefix, names = _without_prefix([name for name in places if name not in companions])
        self._names = names

    def keys(self) -> list[str]:
        """Names in storage order, without prefix and without the companions of fp8 weights."""
        return list(self._names)

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files, for fingerprints."""
        return tuple(file.path for file in self.files)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor, from the index."""
        name = self._names[key]
        return self._places[name].entries[name].shape

    def dtype(self, key: str) -> torch.dtype:
        """dtype that the tensor is stored in (float8 for a quantised one)."""
        name = self._names[key]
        return self._places[name].entries[name].dtype

    def tensor(self, key: str) -> Tensor:
        """The tensor in memory of its own, in its stored dtype; fp8 is given as float32, its scale applied."""
        quantised = self.quantised(key)
        if quantised is not None:
            return dequantise(quantised, torch.float32)
        name = self._names[key]
        tensor, scale = self._places[name].read(name), self._scales.get(name)
        return tensor if scale is None else dequantise(Quantised(tensor, self._scale(scale)), tensor.dtype)

    def quantised(self, key: str) -> Quantised | None:
        """fp8 values and float32 scale (1 where the file has none); None for a tensor that is not fp8."""
        if self.dtype(key) not in FP8_DTYPES:
            return None
        name = self._names[key]
        scale = self._scales.get(name)
        return Quantised(self._places[name].read(name), torch.ones(()) if scale is None else self._scale(scale))

    def _scale(self, name: str) -> Tensor:
        return self._places[name].read(name).float()

    def close(self) -> None:
        """Release the files."""
        for file in self.files:
            file.close()

    def __enter__(self) -> "WeightsSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_weights(path: str | os.PathLike[str], *, preferred: Sequence[str] = ()) -> WeightsSource:
    """Open weights: one safetensors or `.pth` file, a shard or index of a set, a pattern, or a folder.

    `preferred` are patterns that are tried first in a folder. Nothing but the indices is read.
    Raises WeightsError for what is missing, empty, truncated, damaged or no weights at all.
    """
    found = find_files(path, preferred)
    source = WeightsSource(Path(path), [open_tensor_file(file) for file in found.files])
    absent = [name for name in found.expected if name not in source._places]
    if absent:
        raise WeightsError(f"{path}: the index names {len(absent)} tensors that are in none of its files ({absent[0]}"
                           f"{', …' if len(absent) > 1 else ''}). Download index and files from one place.")
    return source


def _without_prefix(names: list[str]) -> tuple[str, dict[str, str]]:
    """The prefix, and {name without it: name in the file}."""
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in names):
            return prefix, {name.removeprefix(prefix): name for name in names if not name.startswith(OTHER_PARTS)}
    return "", {name: name for name in names}


def _pair_scales(source: WeightsSource) -> tuple[dict[str, str], set[str]]:
    """{weight: its scale} and every name that only serves a quantised weight. Refuses formats other than fp8."""
    places = source._places
    scales, companions = {}, set()
    for name in places:
        stem, dot, _ = name.rpartition(".")
        if name.endswith(SCALE_SUFFIXES) and f"{stem}.weight" in places:
            scales[f"{stem}.weight"] = name
        if name.endswith((*SCALE_SUFFIXES, *COMPANION_SUFFIXES)) and f"{stem}.weight" in places:
            companions.add(name)
        if name.endswith(".comfy_quant"):
            _check_format(source.path, stem, bytes(places[name].read(name).tolist()).decode("utf-8", "replace"))
        if name.rpartition(".")[2] == MARKER and places[name].entries[name].shape in ((0,), (1,), (2,), ()):
            companions.add(name)
    layers = _json_object(source.metadata.get("_quantization_metadata", "{}")).get("layers", {})
    for stem, text in layers.items() if isinstance(layers, dict) else ():
        _check_format(source.path, stem, json.dumps(text))
    return scales, companions


def _json_object(text: str) -> dict[str, object]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _check_format(path: Path, stem: str, text: str) -> None:
    name = _json_object(text).get("format", "unknown")
    if name not in READABLE_FORMATS:
        raise WeightsError(f"{path}: '{stem}' is quantised as '{name}'. Readable are {', '.join(READABLE_FORMATS)}; "
                           "use the bf16, fp16 or fp8 file of the same model.")
