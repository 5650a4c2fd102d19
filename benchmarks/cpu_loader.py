"""Row of `python -m benchmarks`: batches a second from caches, beside what a short step on a fast card asks for."""

from pathlib import Path
import time

import torch
from torch import Tensor

from common.features import FeatureSpec
from common.tensorfile import save_tensors
from dataset.items import Item
from dataset.plan import FeatureEntry, TrainingItem
from dataset.rows import FileRef
from dataset.sources import Clock
from dataset.spans import Span
from training.clips import EpochBatches
from training.processes import Processes
from wan.encoders.specs import LATENTS, REFERENCE_LATENTS, TEXT, audio_spec

STEP_S = 0.6
"""A 14B step at 480x480x25 on one H200 (the goal): the shortest that a loader has to keep up with."""
CLIPS, FRAMES, SIDE, FILE_FRAMES = 8, 25, 480, 250
WORKERS = 2


def loader_rate(folder: Path, epochs: int = 4) -> float:
    """Batches of one clip a second, of latents, text, sound and reference, read ahead by threads and added up.

    The files lie in the system's cache, as those of a small set do after its first epoch. The sums touch every number,
    since opening alone only maps the pages.
    """
    folder.mkdir(parents=True)
    clips = [_clip(folder, f"{number:03d}") for number in range(CLIPS)]
    batches = EpochBatches(clips, seed=1, processes=Processes(), workers=WORKERS)
    started, count = 0.0, 0
    for epoch in range(1, epochs + 2):
        if epoch == 2:  # the first brings the pages in
            started, count = time.perf_counter(), 0
        for batch in batches(epoch, 0):
            assert batch is not None
            tensors = [batch.latents, *batch.features.features["text"]["hidden"],
                       *batch.features.features["audio"].values(),
                       *batch.features.features["reference_latents"].values()]
            assert all(bool(tensor.float().sum().isfinite()) for tensor in tensors)
            count += 1
    return count / (time.perf_counter() - started)


def _clip(folder: Path, name: str) -> TrainingItem:
    """A clip whose caches have the sizes of real ones: 14B's text of 300 tokens, sound of a file of ten seconds."""
    frames, side = (FRAMES - 1) // 4 + 1, SIDE // 8
    latents = torch.randn(16, frames, side, side)
    specs: dict[FeatureSpec, Tensor] = {
        LATENTS: latents, TEXT: torch.randn(300, 4096).bfloat16(), audio_spec(): torch.randn(FILE_FRAMES, 13, 768),
        REFERENCE_LATENTS: latents[:, :1].contiguous()}
    entries = []
    for spec, tensor in specs.items():
        path = folder / f"{name}.{spec.name}.safetensors"
        save_tensors(path, {spec.tensors[0].name: tensor}, {})
        entries.append(FeatureEntry(spec, path))
    span = Span(100, FRAMES, SIDE, SIDE)
    item = Item(key=name, name=f"{name}.mp4", where=name, section="clips", section_index=0, kind="video",
                media=FileRef(folder / f"{name}.mp4", f"{name}.mp4"), content=name, caption="", clock=Clock(25.0),
                n_frames=FILE_FRAMES, picture_start_s=0.0, spans=(span,), repeats=1, batch_size=1, cache=folder)
    sizes = {"F": frames, "H": side, "W": side, "N": FRAMES}
    return TrainingItem(item, span, tuple(entries), sizes)
