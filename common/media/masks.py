"""Masks: pictures that are white where something is; as shares of latent places and latent frames."""

from jaxtyping import Float, UInt8
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from common.speakers import Box
from common.timebase import VAE_TEMPORAL_STRIDE, latent_frame_count

HALF = 0.5
"""A mask that is nowhere this bright covers nothing: what is left is the noise of a video codec."""


def mask_of(pictures: UInt8[np.ndarray, "*n h w 3"]) -> Float[Tensor, "*n h w"]:
    """Brightness in 0…1: white is inside, black outside, grey in between."""
    return torch.tensor(pictures).float().mean(dim=-1) / 255


def covers_nothing(mask: Float[Tensor, "*n h w"]) -> bool:
    """Whether no place of it is at least half inside."""
    return bool(mask.max() < HALF)


def box_mask(box: Box, size: tuple[int, int]) -> Float[Tensor, "h w"]:
    """Mask of a box in a picture of `size` = (width, height): whole pixels, at least one."""
    width, height = size
    left, right = round(box[0] * width), round(box[2] * width)
    top, bottom = round(box[1] * height), round(box[3] * height)
    mask = torch.zeros(height, width)
    mask[top:max(bottom, top + 1), left:max(right, left + 1)] = 1
    return mask


def at_latent_size(masks: Float[Tensor, "n h w"], latent_size: tuple[int, int]) -> Float[Tensor, "n H W"]:
    """Share of each latent place that is inside: the mean over its pixels."""
    return adaptive_avg_pool2d(masks, latent_size)


def at_latent_frames(masks: Float[Tensor, "n H W"], frames: int) -> Float[Tensor, "F H W"]:
    """Masks of the latent frames of a clip of `frames` = 4n+1: the maximum over the video frames that each covers.

    Latent frame 0 covers frame 0, latent frame t the frames 4t-3 … 4t. One mask holds for all frames.
    Source: audio.md 5.7 (a region counts for a latent frame if it is there in any of its frames).
    """
    latent_frames = latent_frame_count(frames)
    if len(masks) == 1:
        return masks.expand(latent_frames, -1, -1).clone()
    assert len(masks) == frames, (len(masks), frames)
    later = masks[1:].unflatten(0, (latent_frames - 1, VAE_TEMPORAL_STRIDE)).amax(1)
    return torch.cat((masks[:1], later))
