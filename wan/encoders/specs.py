"""Names and contracts of the cached features that this package makes; imports no torch, so that `--help` can list them.

Letters of the shapes: F, H, W latent frames, height and width; N video frames; S rows of sound at 50 Hz; L, T tokens;
K hidden states; D width.
"""

from typing import Literal

from common.features import AUDIO_HALO, FeatureSpec, KeyPart, TensorSpec
from wan.audio_presets import Scope

Given = Literal["first", "first_last"]
"""Which frames of the clip an image-to-video model is given."""

SILENCE, VAD = "silence", "vad"
"""Tensors that `audio` may hold beside `states`."""

CLIP_KEY: tuple[KeyPart, ...] = ("source", "span", "size")

LATENTS = FeatureSpec("latents", 1, CLIP_KEY, (TensorSpec("latents", "16 F H W"),))
CONTROL_LATENTS = FeatureSpec("control_latents", 1, CLIP_KEY, (TensorSpec("latents", "16 F H W"),))
REFERENCE_LATENTS = FeatureSpec("reference_latents", 1, CLIP_KEY, (TensorSpec("latents", "16 1 H W"),))
IMAGE_LATENTS = FeatureSpec("image_latents", 1, CLIP_KEY, (TensorSpec("latents", "20 F H W"),))
TEXT = FeatureSpec("text", 1, ("source",), (TensorSpec("hidden", "L D", batching="list"),),
                   command="cache_text_encoder_outputs.py")


def clip_spec(given: Given = "first") -> FeatureSpec:
    """Contract of `clip`: features of the first frame, and of the last one where the model is given both."""
    names = ("first", "last") if given == "first_last" else ("first",)
    return FeatureSpec("clip", 1, CLIP_KEY, tuple(TensorSpec(name, "T D") for name in names))


def audio_spec(scope: Scope = "file", *, is_by_frame: bool = True, is_by_size: bool = False,
               more: tuple[str, ...] = ()) -> FeatureSpec:
    """Contract of `audio`: a row for each video frame; of the whole source, to be cut, or of the clip alone.

    `is_by_frame` False: rows at 50 Hz. `is_by_size`: what is padded depends on the clip's size. `more`: the tensors
    `silence` (rows of encoded silence) and `vad` (share of each video frame that is speech).
    """
    of_file = scope == "file"
    keyed_by: tuple[KeyPart, ...] = ("source",) if of_file else ("source", "span")
    axis = 0 if of_file else None
    rows = "N K D" if is_by_frame else "S K D"
    tensors = [TensorSpec("states", rows, span_axis=axis, halo=AUDIO_HALO if of_file else 0)]
    tensors += [TensorSpec(name, "N" if name == VAD else rows, span_axis=axis,
                           absent="like" if name == SILENCE else "zeros") for name in more]
    return FeatureSpec("audio", 1, (*keyed_by, "size") if is_by_size else keyed_by, tuple(tensors),
                       command="cache_audio_features.py")


SPECS: dict[str, FeatureSpec] = {
    "latents": LATENTS,
    "control_latents": CONTROL_LATENTS,
    "reference_latents": REFERENCE_LATENTS,
    "image_latents": IMAGE_LATENTS,
    "clip": clip_spec(),
    "text": TEXT,
    "audio": audio_spec(),
}
"""Feature name -> contract with default options. `clip` and `audio` vary: see `clip_spec` and `audio_spec`."""
