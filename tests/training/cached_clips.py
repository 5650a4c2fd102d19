"""Clips of a training plan over small caches that are written here, without media and encoders."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.features import FeatureSpec
from common.tensorfile import save_tensors
from common.timebase import latent_frame_count
from dataset.items import Item
from dataset.plan import FeatureEntry, TrainingItem
from dataset.rows import FileRef
from dataset.sources import Clock
from dataset.spans import Span
from wan.encoders.specs import LATENTS, REFERENCE_LATENTS, TEXT, audio_spec

AUDIO = audio_spec("clip")


def item(content: str, spans: tuple[Span, ...], folder: Path = Path("."), *, name: str = "") -> Item:
    """A video whose content hash is `content`."""
    name = name or f"{content}.mp4"
    return Item(key=content, name=name, where=name, section="clips", section_index=0, kind="video",
                media=FileRef(folder / name, name), content=content, caption="", clock=Clock(25.0),
                n_frames=max(span.end for span in spans), picture_start_s=0.0, spans=spans, repeats=1, batch_size=1,
                cache=folder)


def bare(content: str, *starts: int, name: str = "") -> list[TrainingItem]:
    """Clips of nine frames from `starts` of one file, without caches."""
    spans = tuple(Span(start, 9, 32, 32) for start in starts or (0,))
    one = item(content, spans, name=name)
    return [TrainingItem(one, span, (), {}) for span in spans]


def cached(folder: Path, content: str, tensors: Mapping[str, Tensor], *, frames: int) -> TrainingItem:
    """One clip with the named features; `audio` may be left out (no sound). Latents are 4 x 6."""
    span = Span(0, frames, 48, 32)
    sizes = {"F": latent_frame_count(frames), "H": 4, "W": 6, "N": frames}
    entries = []
    for spec in (LATENTS, TEXT, AUDIO, REFERENCE_LATENTS):
        if spec.name not in tensors:
            if spec is AUDIO:
                entries.append(FeatureEntry(spec, None, like=_write(folder, "like", spec, torch.zeros(frames, 3, 4))))
            continue
        entries.append(FeatureEntry(spec, _write(folder, content, spec, tensors[spec.name])))
    return TrainingItem(item(content, (span,), folder), span, tuple(entries), sizes)


def _write(folder: Path, content: str, spec: FeatureSpec, tensor: Tensor) -> Path:
    path = folder / f"{content}.{spec.name}.safetensors"
    save_tensors(path, {spec.tensors[0].name: tensor}, {})
    return path


def talking(folder: Path, content: str, *, frames: int = 21, has_sound: bool = True) -> TrainingItem:
    """A clip of random numbers that follow from its name: 3 states of width 4, 12 wide text."""
    draws = torch.Generator().manual_seed(sum(content.encode()))
    latents = torch.randn(16, latent_frame_count(frames), 4, 6, generator=draws)
    tensors = {"latents": latents, "text": torch.randn(3, 12, generator=draws), "reference_latents": latents[:, :1],
               "audio": torch.randn(frames, 3, 4, generator=draws)}
    if not has_sound:
        del tensors["audio"]
    return cached(folder, content, tensors, frames=frames)
