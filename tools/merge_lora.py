"""Write a base DiT with LoRA files merged into its weights: a whole model for programs that take no LoRA.

    python tools/merge_lora.py --dit Wan2.1-T2V-14B --lora_weight talking.safetensors --out talking-14B.safetensors

The official names are written, which ComfyUI, musubi-tuner and this program's --dit read. Weights go through one by
one, in float32 on the way, so that memory holds one tensor beside the LoRA. Trained conditions (the audio of a talking
LoRA) are no part of a DiT and are not merged: they are named, and stay in the LoRA's file.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
import json
import math
from pathlib import Path
import shutil
import sys
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import ConfigError, run  # noqa: E402

if TYPE_CHECKING:
    import torch

    from networks.formats import LoraFile
    from networks.merge import LoraMerge
    from wan.variants import Variant
    from wan.weights.source import WeightsSource

DTYPES = ("bf16", "fp16", "fp32")
METADATA_KEY = "omnituner.merged"

Layout = dict[str, tuple["torch.dtype", tuple[int, ...]]]
"""dtype and shape of every tensor, by its official name, in the base's order."""


def parser() -> argparse.ArgumentParser:
    """The flags; where musubi-tuner has one, in its spelling."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--dit", type=Path, required=True, help="the base: file, shards or folder, of any known layout")
    flags.add_argument("--lora_weight", type=Path, nargs="+", required=True, help="LoRA files of any known layout")
    flags.add_argument("--lora_multiplier", type=float, nargs="+", default=[1.0],
                       help="strength of each file, or one for all; default: 1")
    flags.add_argument("--out", "--save_merged_model", type=Path, required=True, help="safetensors file to write")
    flags.add_argument("--dtype", choices=DTYPES, help="dtype of the weights; default: as the base stores each, and "
                                                       "bf16 for what it stores in fp8")
    flags.add_argument("--shard_gib", type=float, help="cut the model into files of about this size, with an index "
                                                       "beside them; default: one file")
    flags.add_argument("--device", default="cpu", help="where the products are made; default: cpu")
    return flags


@dataclass(frozen=True)
class Base:
    """The open base and how its tensors are called and will be stored."""

    source: "WeightsSource"
    names: Mapping[str, str]
    """Official name → the source's, in the source's order."""
    layout: Layout
    variant: "Variant"

    @property
    def nbytes(self) -> int:
        """Bytes of the merged tensors."""
        return sum(_size(entry) for entry in self.layout.values())


def main(arguments: list[str] | None = None) -> int:
    """Check everything from headers, then merge and write."""
    given = parser().parse_args(arguments)

    from common.devices import pick_device
    from networks.formats import read_lora
    from networks.merge import LoraMerge
    from wan.weights.detect import RELEASED_HEAD_DIM
    from wan.weights.dit import inspect_dit, open_dit

    multipliers = given.lora_multiplier * (len(given.lora_weight) if len(given.lora_multiplier) == 1 else 1)
    if len(multipliers) != len(given.lora_weight):
        raise ConfigError(f"--lora_multiplier: {len(multipliers)} for {len(given.lora_weight)} files. Give one for "
                          "each file, or one for all.")
    facts, device = inspect_dit(given.dit), pick_device(given.device)
    files = list(zip([read_lora(path) for path in given.lora_weight], multipliers, strict=True))
    with open_dit(given.dit) as source:
        base = _base(source, facts.variant, given.dtype)
        _refuse(given, base, files)
        merge = LoraMerge(files)
        metadata = {"format": "pt", METADATA_KEY: json.dumps({
            "base": given.dit.name, "files": [{"file": file.path.name, "multiplier": multiplier}
                                              for file, multiplier in files]})}
        written = write(given.out, base, merge, metadata, shard_gib=given.shard_gib, device=device)
    for report in merge.reports():
        print(report.text())
    for path in written:
        print(f"wrote {path} ({path.stat().st_size / 2**30:.2f} GiB)")
    for file, _ in files:
        _tell_conditions(given.out, file)
    if base.variant.dim // base.variant.heads != RELEASED_HEAD_DIM:
        print("note: the heads are not 128 wide, which no weight shows; keep the base's config.json beside the file")
    return 0


def _base(source: "WeightsSource", variant: "Variant", dtype: str | None) -> Base:
    import torch

    from common.dtypes import parse_dtype
    from wan.memory.fp8 import FP8_DTYPES
    from wan.modules.dit import WanDiT
    from wan.weights.detect import detect_dit

    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in WanDiT(variant).state_dict().items()}
    found = detect_dit(source)
    order = {key: position for position, key in enumerate(source)}
    names = {name: found.source_key(name) for name in shapes}
    names = dict(sorted(names.items(), key=lambda item: order[item[1]]))
    layout: Layout = {}
    for name, key in names.items():
        stored = torch.bfloat16 if source.dtype(key) in FP8_DTYPES else source.dtype(key)
        layout[name] = (parse_dtype(dtype) if dtype else stored), shapes[name]
    return Base(source, names, layout, variant)


def _refuse(given: argparse.Namespace, base: Base, files: Sequence[tuple["LoraFile", float]]) -> None:
    """What can be refused before a weight is read."""
    from inference.adapters import Adapters, refuse_misfits
    from wan.weights.dit import DitFacts

    target = given.out.resolve()
    if given.out.suffix != ".safetensors":
        raise ConfigError(f"--out {given.out}: must end in .safetensors.")
    if target in [path.resolve() for path in (*base.source.paths, *given.lora_weight)]:
        raise ConfigError(f"--out {given.out}: is a file that is read. Name a new one.")
    if given.shard_gib is not None and not 0 < given.shard_gib < math.inf:
        raise ConfigError(f"--shard_gib {given.shard_gib:g}: a size above 0, such as 10.")
    for file, _ in files:
        if not file.entries:
            raise ConfigError(f"{file.path}: holds no LoRA, only conditions ({', '.join(conditions_of(file))}), which "
                              "are no part of a DiT. There is nothing to merge.")
    import torch

    refuse_misfits(Adapters(tuple(files)), DitFacts(base.variant, torch.float32).empty().state_dict())
    folder = next(parent for parent in target.parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if free < base.nbytes:
        raise ConfigError(f"--out {given.out}: needs {base.nbytes / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free "
                          f"in {folder}. Free some space, choose another folder, or --dtype bf16.")


def conditions_of(file: "LoraFile") -> list[str]:
    """Names of the conditions that a file holds."""
    from networks.condition_weights import split_by_condition

    return list(split_by_condition(file.conditions))


def _tell_conditions(out: Path, file: "LoraFile") -> None:
    names = conditions_of(file)
    if names:
        print(f"not merged: {len(file.conditions)} tensors of the condition{'s' if len(names) > 1 else ''} "
              f"{', '.join(names)} in {file.path.name}. To use them with the merged model: generate_video.py "
              f"--dit {out} --lora_weight {file.path} --no_lora")


def write(path: Path, base: Base, merge: "LoraMerge", metadata: Mapping[str, str], *, shard_gib: float | None = None,
          device: str = "cpu") -> list[Path]:
    """The merged model in one file, or in shards with an index; returns the files.

    Each file is whole or absent, and the index, which makes shards a model, comes last.
    """
    from common.atomic import write_text
    from common.tensorfile import stream_tensors
    from wan.weights.shards import INDEX_SUFFIX

    parts = [base.layout] if shard_gib is None else _cut(base.layout, int(shard_gib * 2**30))
    count = len(parts)
    paths = [path] if shard_gib is None else [path.with_name(f"{path.stem}-{i:05d}-of-{count:05d}.safetensors")
                                              for i in range(1, count + 1)]
    for part, layout in zip(paths, parts, strict=True):
        stream_tensors(part, layout, _merged(base, layout, merge, device), metadata)
    if shard_gib is None:
        return paths
    index: dict[str, Any] = {"metadata": {"total_size": base.nbytes},
                             "weight_map": {name: part.name for part, layout in zip(paths, parts, strict=True)
                                            for name in layout}}
    beside = path.with_name(path.name + INDEX_SUFFIX)
    write_text(beside, json.dumps(index, indent=2) + "\n")
    return [*paths, beside]


def _cut(layout: Layout, most: int) -> list[Layout]:
    """Parts of at most `most` bytes (a larger tensor stands alone)."""
    parts: list[Layout] = [{}]
    size = 0
    for name, entry in layout.items():
        if parts[-1] and size + _size(entry) > most:
            parts.append({})
            size = 0
        parts[-1][name] = entry
        size += _size(entry)
    return parts


def _size(entry: tuple["torch.dtype", tuple[int, ...]]) -> int:
    return entry[0].itemsize * math.prod(entry[1])


def _merged(base: Base, layout: Layout, merge: "LoraMerge", device: str) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Each tensor of `layout` as a loader with this merge would give it."""
    import torch

    for name, (dtype, _) in layout.items():
        tensor = merge(name, base.source.tensor(base.names[name]).to(device)).to(dtype)
        if not torch.isfinite(tensor).all():
            raise ConfigError(f"'{name}': merged, it holds NaN or numbers beyond {str(dtype).removeprefix('torch.')}. "
                              "The base or a LoRA is damaged, or --dtype fp16 is too narrow: use bf16.")
        yield name, tensor.cpu()


if __name__ == "__main__":
    run(main)
