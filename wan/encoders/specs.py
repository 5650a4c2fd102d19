"""Names and contracts of the cached features that this package makes; imports no torch, so that `--help` can list them.

Letters of the shapes: F, H, W latent frames, height and width; N video frames; R rows of sound at 50 Hz; L, T tokens;
K hidden states; D width; S speakers.
"""

from dataclasses import replace
from typing import Literal

from common.features import AUDIO_HALO, FeatureSpec, KeyPart, TensorSpec
from common.speakers import SPEAKER_REGIONS, audio_feature
from wan.audio_presets import Scope

Given = Literal["first", "first_last"]
"""Which frames of the clip an image-to-video model is given."""
NullText = Literal["empty", "negative"]
"""What a dropped prompt is in training: the empty prompt, or the one that audio-driven generation leads away from."""
NULL = "null"
"""Tensor of the feature `text` that holds the embedding of the dropped prompt."""
SILENCE, VAD = "silence", "vad"
"""Tensors that `audio` may hold beside `states`."""

CLIP_KEY: tuple[KeyPart, ...] = ("source", "span", "size")

LATENTS = FeatureSpec("latents", 1, CLIP_KEY, (TensorSpec("latents", "16 F H W"),))
CONTROL_LATENTS = FeatureSpec("control_latents", 1, CLIP_KEY, (TensorSpec("latents", "16 F H W"),))
REFERENCE_LATENTS = FeatureSpec("reference_latents", 1, CLIP_KEY, (TensorSpec("latents", "16 1 H W"),))
IMAGE_LATENTS = FeatureSpec("image_latents", 1, CLIP_KEY, (TensorSpec("latents", "20 F H W"),))
REGIONS = ("face", "lip")
REGION_MASKS = FeatureSpec("region_masks", 1, CLIP_KEY, tuple(TensorSpec(name, "1 F H W") for name in REGIONS))
SPEAKER_REGIONS_SPEC = FeatureSpec(SPEAKER_REGIONS, 1, CLIP_KEY, (TensorSpec("regions", "S F H W"),))
TEXT = FeatureSpec("text", 1, ("source",), (TensorSpec("hidden", "L D", batching="list"),),
                   command="cache_text_encoder_outputs.py")


def text_spec(null: NullText | None = None) -> FeatureSpec:
    """Contract of `text`: the caption, and with `null` what stands for it where training drops it."""
    more = () if null is None else (TensorSpec(NULL, "L0 D", batching="list"),)
    return replace(TEXT, tensors=TEXT.tensors + more)


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
    rows = "N K D" if is_by_frame else "R K D"
    tensors = [TensorSpec("states", rows, span_axis=axis, halo=AUDIO_HALO if of_file else 0)]
    tensors += [TensorSpec(name, "N" if name == VAD else rows, span_axis=axis,
                           absent="like" if name == SILENCE else "zeros") for name in more]
    return FeatureSpec("audio", 1, (*keyed_by, "size") if is_by_size else keyed_by, tuple(tensors),
                       command="cache_audio_features.py")


def voice_spec(first: FeatureSpec, speaker: int) -> FeatureSpec:
    """Contract of what is heard of `speaker` (from 2): that of the first one's sound under the speaker's name."""
    return replace(first, name=audio_feature(speaker))


SPECS: dict[str, FeatureSpec] = {
    "latents": LATENTS,
    "control_latents": CONTROL_LATENTS,
    "reference_latents": REFERENCE_LATENTS,
    "image_latents": IMAGE_LATENTS,
    "clip": clip_spec(),
    "text": TEXT,
    "audio": audio_spec(),
    "region_masks": REGION_MASKS,
    "speaker_regions": SPEAKER_REGIONS_SPEC,
}
"""Feature name -> contract with default options. `text`, `clip` and `audio` vary: see `text_spec`, `clip_spec` and
`audio_spec`."""
