"""From a plan to the features of a generation, with the very encoders that fill the caches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from common.features import AFTER, AUDIO_HALO, BEFORE, FeatureBatch, rows_of_span
from common.media.item import Media
from common.media.picture import exact_frames, fit
from common.media.sound import mono16k
from common.timebase import AUDIO_SAMPLE_RATE_HZ, frames_in
from inference.plan import Plan
from wan.conditions.given_frames import with_first_frame_given
from wan.encoders.base import Encoder, ModelEncoder
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
    sound = _heard_sound(plan) if name == "audio" else None
    heard = 0 if sound is None else frames_in(len(sound) / AUDIO_SAMPLE_RATE_HZ, plan.fps)
    return Media(n_frames=max(plan.length.frames, heard), fps=plan.fps, frames=frames, control=control,
                 reference=reference, sound=sound)


def _heard_sound(plan: Plan) -> np.ndarray | None:
    if plan.scene.sound is None:
        return None
    lead = round(plan.request.audio_lead * AUDIO_SAMPLE_RATE_HZ)
    return np.pad(mono16k(plan.scene.sound), (lead, 0))


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


def assemble(plan: Plan, features: Mapping[str, Mapping[str, Tensor]], text: Tensor, negative_text: Tensor) -> Prepared:
    """Join the features of one clip to a batch of one, with what is given and what is still."""
    stacked = {name: {key: tensor[None] for key, tensor in tensors.items()} for name, tensors in features.items()}
    if "audio" in features:
        states = features["audio"]["states"]
        rows = rows_of_span(lambda start, end: states[start:end], len(states), (0, plan.length.frames), AUDIO_HALO)
        names = (BEFORE, "states", AFTER)
        stacked["audio"] = {name: tensor[None] for name, tensor in zip(names, rows, strict=True)}
    batch = FeatureBatch(features=stacked, frames=plan.length.frames, fps=plan.fps)
    if plan.starts_from_picture:
        batch = with_first_frame_given(batch, stacked["reference_latents"]["latents"], plan.latent_shape[1],
                                       is_still=torch.tensor([True]))
    return Prepared(plan, text, negative_text, batch)


def texts_of(plans: Sequence[Plan]) -> list[str]:
    """Every different text that the plans need; the negative one only where guidance uses it."""
    texts = [text for plan in plans
             for text in (plan.prompt, *([plan.negative_prompt] if plan.guidance != 1 else []))]
    return list(dict.fromkeys(texts))

