"""A clip with its sound at the wrong moment, or with none: what a network that hears must find harder."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from common.features import FeatureBatch, FeatureSpec
from common.timebase import VAE_TEMPORAL_STRIDE, ceil_frame_count
from dataset.plan import TrainingItem
from wan.encoders.specs import SILENCE

SHIFT_FRAMES = 5
"""How far the sound is moved, in video frames: 0.2 s at 25 fps, far beyond what lips forgive."""
SOUND = "audio"
"""The feature that a condition hears."""


def compared_frames(frames: int, shift: int = SHIFT_FRAMES) -> range:
    """Latent frames of a clip of `frames` video frames whose own sound is moved for certain, `shift` either way.

    Latent frame t > 0 lasts over the video frames 4t-3 … 4t; each of them must have a row that lies `shift` before it
    and one that lies `shift` after it. Frame 0 is left out: it is given, or heard as a still. Empty for short clips.
    """
    first = -(-(shift + VAE_TEMPORAL_STRIDE - 1) // VAE_TEMPORAL_STRIDE)
    last = (frames - 1 - shift) // VAE_TEMPORAL_STRIDE
    return range(max(1, first), last + 1)


def shortest_clip(shift: int = SHIFT_FRAMES) -> int:
    """Video frames (4n+1) of the shortest clip with a frame to compare."""
    first = compared_frames(10**6, shift).start
    return ceil_frame_count(VAE_TEMPORAL_STRIDE * first + 1 + shift)


def moved(rows: Tensor, shift: int, axis: int) -> Tensor:
    """`rows`, one a video frame along `axis`, `shift` frames later (earlier below 0): row r is what r - shift was.

    The rows at the edge for which the clip has none to move there keep their own. Rolled round, they would be heard
    from the other end of the clip, and attention would carry them into every frame.
    """
    count = rows.shape[axis] - abs(shift)
    result = rows.clone()
    result.narrow(axis, max(shift, 0), count).copy_(rows.narrow(axis, max(-shift, 0), count))
    return result


def with_sound_moved(features: FeatureBatch, spec: FeatureSpec, shift: int) -> FeatureBatch:
    """The batch with the sound of every speaker `shift` video frames later; pictures, text and all else stay."""
    sound = _moved(features.features[SOUND], spec, shift)
    voices = tuple(_moved(voice, spec, shift) for voice in features.voices)
    return replace(features, features={**features.features, SOUND: sound}, voices=voices)


def _moved(heard: Mapping[str, Any], spec: FeatureSpec, shift: int) -> dict[str, Any]:
    """What is heard of one speaker, `shift` video frames later."""
    sound = dict(heard)
    for tensor in spec.tensors:
        axis = _frame_axis(tensor.shape)
        if axis is None or tensor.name == SILENCE:  # silence is beside the speakers, and says nothing at any moment
            continue
        value = sound[tensor.name]
        sound[tensor.name] = ([moved(one, shift, axis) for one in value] if tensor.batching == "list"
                              else moved(value, shift, axis + 1))
    return sound


def without_sound(features: FeatureBatch, size: int) -> FeatureBatch:
    """The batch of `size` samples with the condition's own form of no sound."""
    return replace(features, present={**features.present, SOUND: torch.zeros(size, dtype=torch.bool)})


def _frame_axis(shape: str) -> int | None:
    axes = shape.split()
    return axes.index("N") if "N" in axes else None


def why_not_compared(clip: TrainingItem) -> str:
    """Why the sound of `clip` cannot be moved, in words that follow a number of clips; empty where it can."""
    entry = next((entry for entry in clip.entries if entry.spec.name == SOUND), None)
    if entry is None or entry.path is None:
        return "without sound"
    if all(_frame_axis(tensor.shape) is None for tensor in entry.spec.tensors):
        return "whose sound is cached without an axis of video frames"
    if not compared_frames(clip.frames):
        return f"shorter than {shortest_clip()} frames"
    return ""
