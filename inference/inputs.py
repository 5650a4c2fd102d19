"""From a plan to the features of a generation, with the very encoders that fill the caches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from einops import repeat
from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from common.features import FeatureBatch
from common.media.item import Media
from common.media.picture import exact_frames, fit
from common.media.sound import mono16k
from common.timebase import AUDIO_SAMPLE_RATE_HZ, frames_in
from inference.hearing import cut_rows, hear
from inference.plan import Plan
from inference.segments import Segment
from wan.conditions.given_frames import with_first_frame_given
from wan.conditions.sound import SILENCE
from wan.encoders.base import Encoder, ModelEncoder
from wan.encoders.features.audio import AudioFeatureEncoder
from wan.encoders.registry import FEATURES

ORDER = ("clip", "audio", "image_latents", "reference_latents", "control_latents")
"""Features by the model that makes them, so that each model is loaded once; the VAE, which is needed again, last."""


@dataclass(frozen=True)
class Prepared:
    """A plan with its features, on the CPU."""

    plan: Plan
    text: Float[Tensor, "L D"]
    negative_text: Float[Tensor, "L D"]
    batch: FeatureBatch
    """Of the clip, or of the chunk that is to be made."""
    sounds: tuple[Mapping[str, Float[Tensor, "N K D"]], ...] = ()
    """What is heard of each speaker at every frame of the whole video: `states`, and for the first one `silence` where
    a condition wants it."""

    def following(self, segment: Segment, known: Float[Tensor, "16 P h w"],
                  image_latents: Float[Tensor, "20 T h w"] | None = None) -> "Prepared":
        """The same for a chunk after the first: it begins with the latents `known` and hears its own part of the sound.

        `image_latents` replace those of an image-to-video model, whose channels show the frames that are known.
        """
        heard, voices = _heard(self.plan, segment, self.sounds)
        features = {**self.batch.features, "audio": heard}
        if image_latents is not None:
            features["image_latents"] = {"latents": image_latents[None]}
        latents = known.new_zeros(self.plan.shape_of(segment))[None]
        latents[0, :, :known.shape[1]] = known
        mask = torch.zeros_like(latents[:, :1])
        mask[:, :, :known.shape[1]] = 1
        batch = replace(self.batch, features=features, frames=segment.frames, given_latents=latents, given_mask=mask,
                        first_is_still=torch.tensor([False]), voices=voices, regions=_regions(self.plan, segment))
        return replace(self, batch=batch)


def make_encoder(name: str, model: Any, weights: Any, plan: Plan) -> Encoder:
    """The encoder of a feature around a loaded model, with the options that `plan` asks for."""
    kind: type[ModelEncoder] = FEATURES[name]
    given = "first_last" if plan.scene.last is not None else "first"
    options: dict[str, dict[str, Any]] = {
        "clip": {"picture_mode": plan.picture_mode, "given": given},
        "image_latents": {"picture_mode": plan.picture_mode, "given": given},
        "reference_latents": {"picture_mode": plan.picture_mode},
        "audio": {"scope": "file"},
    }
    return kind(model, weights, **options.get(name, {}))  # type: ignore[call-arg, return-value]


def media_for(name: str, plan: Plan) -> Media:
    """What the encoder of feature `name` shall look at or hear."""
    frames: np.ndarray | None = None
    control: np.ndarray | None = None
    if name == "clip":
        frames = _clip_pictures(plan)
    elif name == "image_latents":
        frames = _fitted_pictures(plan)
    elif name == "control_latents":
        control = _control_frames(plan)
    reference = _fitted_pictures(plan)[0] if name == "reference_latents" else None
    return Media(n_frames=plan.length.frames, fps=plan.fps, frames=frames, control=control, reference=reference)


def hear_sounds(encoder: AudioFeatureEncoder, plan: Plan) -> tuple[dict[str, Tensor], ...]:
    """Each speaker's whole sound: a row for every frame, up to the end of the last chunk at least.

    Silence that is heard behind it to fill chunks leaves no row; beside the last frame a chunk hears its edge row, as a
    cached clip does.
    """
    lead = round(plan.timing.lead_s * AUDIO_SAMPLE_RATE_HZ)
    waveforms = [np.pad(mono16k(voice), (lead, 0)) for voice in plan.scene.voices]
    longest = max(len(waveform) for waveform in waveforms)
    frames = frames_in(longest / AUDIO_SAMPLE_RATE_HZ, plan.fps)
    kept = max(plan.sound_rows, frames)
    rows = max(kept, plan.rows_heard(frames))

    def heard(waveform: np.ndarray) -> Tensor:
        return hear(encoder.audio_encoder, waveform, rows=rows, fps=plan.fps,
                    window_s=plan.request.audio_window)[:kept]

    sounds = [{"states": heard(waveform)} for waveform in waveforms]
    if plan.hears_silence:
        sounds[0][SILENCE] = heard(np.zeros(longest, np.float32))
    return tuple(sounds)


def _heard(plan: Plan, segment: Segment, sounds: Sequence[Mapping[str, Tensor]]
           ) -> tuple[dict[str, Tensor], tuple[dict[str, Tensor], ...]]:
    """What a chunk hears: the first speaker's sound, and the others'."""
    rows = segment.rows(plan.timing)
    first, *others = (cut_rows(sound["states"], rows) for sound in sounds)
    if SILENCE in sounds[0]:
        first[SILENCE] = cut_rows(sounds[0][SILENCE], rows)["states"]
    return first, tuple(others)


def _regions(plan: Plan, segment: Segment) -> Float[Tensor, "1 S T h w"] | None:
    return None if plan.regions is None else repeat(plan.regions, "s h w -> 1 s t h w", t=segment.latents)


def _fitted_pictures(plan: Plan) -> np.ndarray:
    """First picture, or first and last, at the clip's size."""
    return np.concatenate([exact_frames(picture, plan.size, plan.picture_mode)  # type: ignore[arg-type]
                           for picture in _pictures(plan)])


def _clip_pictures(plan: Plan) -> np.ndarray:
    """What CLIP sees: as Wan does, the whole picture as it is; after training on cropped pictures, the cropped one."""
    if plan.picture_mode == "wan_i2v":
        return np.stack(_pictures(plan))
    return _fitted_pictures(plan)


def _pictures(plan: Plan) -> list[np.ndarray]:
    """First picture, and the last one at the first one's size (cropped to cover it), as Wan's first+last frame does."""
    first, last = plan.scene.first, plan.scene.last
    assert first is not None
    if last is None:
        return [first]
    return [first, fit(last, (first.shape[1], first.shape[0]), "cover")]


def _control_frames(plan: Plan) -> np.ndarray:
    from common.media.video import read_frames

    assert plan.request.control_path is not None
    return read_frames(plan.request.control_path, fps=plan.fps, count=plan.length.frames, size=plan.size)


def assemble(plan: Plan, features: Mapping[str, Mapping[str, Tensor]], sounds: Sequence[Mapping[str, Tensor]],
             text: Tensor, negative_text: Tensor) -> Prepared:
    """Join the features of one clip, or of a long one's first chunk, to a batch of one."""
    stacked = {name: {key: tensor[None] for key, tensor in tensors.items()} for name, tensors in features.items()}
    batch = FeatureBatch(features=stacked, frames=plan.length.frames, fps=plan.fps)
    if sounds:
        stacked["audio"], voices = _heard(plan, plan.segments[0], sounds)
        batch = replace(batch, voices=voices, regions=_regions(plan, plan.segments[0]))
    if plan.starts_from_picture:
        batch = with_first_frame_given(batch, stacked["reference_latents"]["latents"], plan.latent_shape[1],
                                       is_still=torch.tensor([True]))
    return Prepared(plan, text, negative_text, batch, tuple(sounds))


def texts_of(plans: Sequence[Plan]) -> list[str]:
    """Every different text that the plans need; the negative one only where guidance uses it."""
    texts = []
    for plan in plans:
        is_guided = any(one.negative_text for one in plan.guide().all_passes)
        texts += [plan.prompt, *([plan.negative_prompt] if is_guided else [])]
    return list(dict.fromkeys(texts))

