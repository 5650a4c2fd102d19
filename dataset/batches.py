"""Reads the cached features of a batch and lays them out as their contracts say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
import os
from pathlib import Path
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor

from common.errors import CacheError
from common.features import AFTER, BEFORE, FeatureBatch, TensorSpec, rows_of_span
from common.speakers import SPEAKER_REGIONS, speaker_of
from dataset.plan import FeatureEntry, TrainingItem, entry_shapes
from dataset.sampler import BatchPlan

LATENTS = "latents"
"""The feature that is trained on; the others condition it."""

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
           "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool}


@dataclass(frozen=True)
class LoadedBatch:
    """A batch on the CPU, in the dtypes of the cache."""

    latents: Float[Tensor, "B C F H W"]
    features: FeatureBatch
    items: tuple[TrainingItem, ...]
    positions: tuple[int, ...]
    """Index of each sample in the epoch's global order."""
    weights: Float[Tensor, " B"]
    """1 for a sample that counts, 0 for one that only keeps the processes in step."""
    global_count: int
    """Samples that count over all processes: the divisor of the batch's mean loss."""
    epoch: int
    index: int

    def pinned(self) -> "LoadedBatch":
        """The batch in page-locked memory: a CUDA device copies it while the host goes on."""
        return replace(self, latents=self.latents.pin_memory(), features=self.features.pinned())


def load_batch(plan: BatchPlan) -> LoadedBatch:
    """Read the batch that `plan` describes. CacheError names an entry that is gone, damaged or of another shape."""
    first = plan.items[0]
    features: dict[str, dict[str, Any]] = {}
    present: dict[str, Tensor] = {}
    for number, entry in enumerate(first.entries):
        column = [one.entries[number] for one in plan.items]
        features[entry.spec.name] = {name: tensor for spec in entry.spec.tensors
                                     for name, tensor in _lay_out(spec, column, plan.items).items()}
        if any(one.path is None for one in column):
            present[entry.spec.name] = torch.tensor([one.path is not None for one in column])
    if LATENTS not in features:
        raise CacheError("a batch needs the feature 'latents', and it was not asked for.")
    latents = features.pop(LATENTS)[LATENTS]
    voices, regions = _speakers(features, present)
    batch = FeatureBatch(features=features, frames=first.frames, fps=first.item.fps, present=present, voices=voices,
                         regions=regions)
    return LoadedBatch(latents, batch, plan.items, plan.positions, torch.tensor(plan.weights), plan.global_count,
                       plan.epoch, plan.index)


def _speakers(features: dict[str, dict[str, Any]], present: dict[str, Tensor]
              ) -> tuple[tuple[dict[str, Any], ...], Tensor | None]:
    """Take the sounds of further speakers and the regions of all out of `features`, as a `FeatureBatch` holds them.

    The clips of a batch have the same features, so that one without a further speaker has none in any sample.
    """
    further = [name for name in features if (speaker_of(name) or 1) > 1]
    found = {}
    for name in (*further, SPEAKER_REGIONS):
        tensors, there = features.pop(name, None), present.pop(name, None)
        if there is not None and bool(there.any()) and not bool(there.all()):
            raise CacheError(f"a batch with different numbers of speakers ('{name}' is in some of its clips).")
        if tensors is not None and (there is None or bool(there.all())):
            found[name] = tensors
    regions = found.pop(SPEAKER_REGIONS, None)
    voices = tuple(found[name] for name in sorted(found, key=lambda name: speaker_of(name) or 1))
    return voices, None if regions is None else regions["regions"]


def _lay_out(spec: TensorSpec, column: Sequence[FeatureEntry], items: Sequence[TrainingItem]) -> dict[str, Any]:
    """The samples' tensors under the tensor's name, and with a halo the rows beside the clips under theirs."""
    samples = [_read(spec, entry, one) for entry, one in zip(column, items, strict=True)]
    if spec.batching == "list":
        return {spec.name: [sample[spec.name] for sample in samples]}
    shapes = {tuple(sample[spec.name].shape) for sample in samples}
    if len(shapes) > 1:
        feature = column[0].spec
        raise CacheError(f"{', '.join(one.name for one in items)}: '{feature.name}.{spec.name}' have shapes "
                         f"{sorted(shapes)}, which do not stack. Make them again with {feature.command} --force.")
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _read(spec: TensorSpec, entry: FeatureEntry, one: TrainingItem) -> dict[str, Tensor]:
    """One sample's tensors; only what is shown of them is read from the disk.

    Of a whole-source tensor these are the rows of the clip and its halo, of a clip that is cut its first frames: the
    latents of a causal VAE are then those of the frames alone.
    """
    from safetensors import safe_open

    if entry.path is None:
        return _zeros(spec, entry, one)
    try:
        with safe_open(entry.path, framework="pt") as file:
            if spec.span_axis is None:
                return {spec.name: _start(spec, file, one)}
            part = file.get_slice(spec.name)
            rows = part.get_shape()[spec.span_axis]
            if rows < one.span.end:
                raise CacheError(f"{one.name}: '{entry.spec.name}' has {rows} frames, the clip ends at {one.span.end}. "
                                 f"Make it again with {entry.spec.command} --force.")
            return _cut(spec, part, rows, (one.span.start, one.span.start + one.frames))
    except CacheError:
        raise
    except Exception as error:
        raise CacheError(f"{entry.path}: cannot be read ({error}). Make it again with {entry.spec.command}.") from error


def _start(spec: TensorSpec, file: Any, one: TrainingItem) -> Tensor:
    """The clip's own tensor, along latent and video frames (F, N) as far as it is shown."""
    if one.shown is None:
        return file.get_tensor(spec.name)
    return file.get_slice(spec.name)[tuple(slice(one.sizes[letter] if letter in ("F", "N") else None)
                                           for letter in spec.shape.split())]


def _cut(spec: TensorSpec, part: Any, rows: int, span: tuple[int, int]) -> dict[str, Tensor]:
    """The rows of `span`, and with a halo those beside it."""
    axis = spec.span_axis
    assert axis is not None

    def read(start: int, end: int) -> Tensor:
        return part[(*(slice(None) for _ in range(axis)), slice(start, end))].movedim(axis, 0)

    found = zip((BEFORE, spec.name, AFTER), rows_of_span(read, rows, span, spec.halo), strict=True)
    return {name: tensor.movedim(0, axis) for name, tensor in found if spec.halo or name == spec.name}


def _zeros(spec: TensorSpec, entry: FeatureEntry, one: TrainingItem) -> dict[str, Tensor]:
    """Zeros in the place of a feature that the sample lacks; `present` says so beside them."""
    assert entry.like is not None
    shape, dtype = _shapes(entry.like, os.stat(entry.like).st_mtime_ns)[spec.name]
    shape = list(shape)
    for axis, letter in enumerate(spec.shape.split()):
        if letter in one.sizes:
            shape[axis] = one.sizes[letter]
    if spec.absent == "like" and "N" in spec.shape.split():
        return {spec.name: _rows_like(spec, entry.like, shape)}
    zeros = {spec.name: torch.zeros(shape, dtype=_DTYPES[dtype])}
    if spec.halo and spec.span_axis is not None:
        shape[spec.span_axis] = spec.halo
        zeros |= {name: torch.zeros(shape, dtype=_DTYPES[dtype]) for name in (BEFORE, AFTER)}
    return zeros


def _rows_like(spec: TensorSpec, path: Path, shape: list[int]) -> Tensor:
    """Rows of another entry's tensor, to be as long as `shape`; where it is shorter its last row is repeated."""
    from safetensors import safe_open

    axis = spec.shape.split().index("N")
    with safe_open(path, framework="pt") as file:
        rows = file.get_tensor(spec.name).movedim(axis, 0)
    places = torch.arange(shape[axis]).clamp(max=len(rows) - 1)
    return rows[places].movedim(0, axis)


@lru_cache(maxsize=64)
def _shapes(path: Any, mtime_ns: int) -> dict[str, tuple[list[int], str]]:
    return entry_shapes(path)
