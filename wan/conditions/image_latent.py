"""The channels that image-to-video, first+last frame and Fun-Control models take beside the noisy latents.

Caches, training and generation all build them here.
"""

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor

from common.errors import ConditionError
from common.features import FeatureBatch
from common.timebase import VAE_TEMPORAL_STRIDE, video_frame_count
from wan.variants import Variant

MASK_CHANNELS = VAE_TEMPORAL_STRIDE
"""One for each video frame that a latent frame covers."""


def image_conditioning_video(first: Float[Tensor, "3 H W"], last: Float[Tensor, "3 H W"] | None, frames: int
                             ) -> Float[Tensor, "3 F H W"]:
    """Video that the VAE encodes for `image_channels`: the picture(s) in place, mid grey (0) elsewhere. -1…1."""
    video = first.new_zeros(3, frames, *first.shape[1:])
    video[:, 0] = first
    if last is not None:
        video[:, -1] = last
    return video


def image_channels(latents: Float[Tensor, "*B 16 F H W"], *, last_given: bool = False) -> Float[Tensor, "*B 20 F H W"]:
    """Mask (4 channels, 1 = given) and latents of the conditioning video, as Wan 2.1 I2V and FLF2V see them.

    Channel k of the mask at latent frame t stands for video frame 4t-3+k, frame 0 filling all four of latent frame 0.
    So the first picture sets all four there; the last one sets the fourth at the last latent frame.
    """
    latent_frames = latents.shape[-3]
    given = torch.zeros(video_frame_count(latent_frames), dtype=latents.dtype, device=latents.device)
    given[0] = 1
    if last_given:
        given[-1] = 1
    folded = rearrange(torch.cat((given[:1].expand(MASK_CHANNELS - 1), given)), "(f k) -> k f", k=MASK_CHANNELS)
    mask = folded[:, :, None, None].expand(*latents.shape[:-4], -1, -1, *latents.shape[-2:])
    return torch.cat((mask, latents), dim=-4)


def control_channels(control: Float[Tensor, "B 16 F H W"], image: Float[Tensor, "B 16 F H W"] | None
                     ) -> Float[Tensor, "B 32 F H W"]:
    """Channels of a Fun-Control model: control latents, then the first frame's latent with zeros after it.

    `image` None (text-to-video) gives zeros throughout. The I2V mask is not used.
    """
    start = torch.zeros_like(control)
    if image is not None:
        start[:, :, 0] = image[:, :, 0]
    return torch.cat((control, start), dim=1)


def model_channels(variant: Variant, batch: FeatureBatch) -> Float[Tensor, "B X F H W"] | None:
    """`channels` of the DiT call from cached features: None for models without extra channels.

    Image-to-video and first+last frame read `image_latents`; Fun-Control reads `control_latents`, and `image_latents`
    where the batch has them. Raises ConditionError naming a feature that is missing.
    """
    if variant.extra_channels == 0:
        return None
    if variant.family == "fun_control":
        image = batch.features.get("image_latents")
        return control_channels(_feature(variant, batch, "control_latents")["latents"],
                                None if image is None else image["latents"][:, MASK_CHANNELS:])
    return _feature(variant, batch, "image_latents")["latents"]


def model_clip_features(variant: Variant, batch: FeatureBatch) -> Float[Tensor, "B T D"] | None:
    """`clip_features` of the DiT call: first picture, or first and last one after the other; None where none apply."""
    if not variant.has_image_branch:
        return None
    if variant.family == "fun_control" and "clip" not in batch.features:
        return None
    clip = _feature(variant, batch, "clip")
    if not variant.has_image_positions:
        return clip["first"]
    if "last" not in clip:
        raise ConditionError("a first+last frame model needs CLIP features of both pictures; the feature 'clip' holds "
                             "the first one alone. Encode it with given = first_last.")
    return torch.cat((clip["first"], clip["last"]), dim=1)


def _feature(variant: Variant, batch: FeatureBatch, name: str) -> dict[str, Tensor]:
    if name not in batch.features:
        raise ConditionError(f"this {variant.family} model needs the feature '{name}'; the batch has "
                             f"{', '.join(batch.features) or 'none'}.")
    return dict(batch.features[name])
