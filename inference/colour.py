"""Bringing the colours of generated frames back to those of the reference picture, against drift over many chunks."""

from einops import rearrange
from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

_STILL = 0.15
"""Difference, of -1…1, above which a point counts as moved and not as drawn anew: 19 of 255 levels."""
_LEAST_SPREAD = 1e-3
"""Of a channel, below which it is taken as flat and only shifted."""


def match_colours(frames: Float[Tensor, "3 F H W"], reference: Float[Tensor, "3 H W"], strength: float
                  ) -> Float[Tensor, "3 F H W"]:
    """Frames in -1…1 whose mean and spread of L, a and b are moved towards the reference's by `strength` 0…1.

    Every frame has its own statistics, so that nothing jumps where two chunks meet. Reinhard et al. 2001, in CIE Lab;
    MultiTalk's and InfiniteTalk's correction is the same at strength 1. Strength 0 gives the frames themselves.
    """
    if strength == 0:
        return frames
    wanted = _statistics(_lab(rearrange(reference, "c h w -> h w c")))
    matched = torch.empty_like(frames)
    for index in range(frames.shape[1]):
        frame = rearrange(frames[:, index], "c h w -> h w c")
        lab = _lab(frame)
        mean, spread = _statistics(lab)
        scale = np.where(spread > _LEAST_SPREAD, wanted[1] / np.maximum(spread, _LEAST_SPREAD), 1.0)
        moved = _rgb(((lab - mean) * scale + wanted[0]).astype(np.float32))
        matched[:, index] = rearrange(torch.lerp(frame.float().cpu(), moved, strength), "h w c -> c h w")
    return matched.clamp_(-1, 1)


def match_latents(latents: Float[Tensor, "C F H W"], like: Float[Tensor, "C T H W"], strength: float
                  ) -> Float[Tensor, "C F H W"]:
    """Latents whose channels' mean and spread are moved towards those of `like` by `strength` 0…1.

    The same against drift as `match_colours`, for chunks that hand on latents: contrast and colour of a picture lie in
    the statistics of the channels.
    """
    if strength == 0 or like.shape[1] == 0:
        return latents
    axes = (1, 2, 3)
    spread = latents.std(axes, keepdim=True).clamp(min=_LEAST_SPREAD)
    matched = (latents - latents.mean(axes, keepdim=True)) * (like.std(axes, keepdim=True) / spread)
    return torch.lerp(latents, matched + like.mean(axes, keepdim=True), strength)


def ease_seam(frames: Float[Tensor, "3 F H W"], before: Float[Tensor, "3 H W"], length: int
              ) -> Float[Tensor, "3 F H W"]:
    """Frames in -1…1 after a seam, whose small differences to the frame `before` it fade over the first `length`.

    A new chunk draws still things a little anew, which is seen as one step. d = before - frames[0], taken as it is
    where it is small and not at all where it is large (what moves), is added with a weight that falls evenly to 0:
    frame j + (1 - (j + 1) / (length + 1)) d exp(-(|d| / 0.15)^2).
    """
    length = min(length, frames.shape[1])
    if length == 0:
        return frames
    difference = before - frames[:, 0]
    size = difference.abs().amax(0, keepdim=True)
    still = difference * torch.exp(-(size / _STILL) ** 2)
    weight = 1 - torch.arange(1, length + 1, dtype=frames.dtype) / (length + 1)
    eased = frames.clone()
    eased[:, :length] += weight[:, None, None] * still[:, None]
    return eased.clamp_(-1, 1)


def _lab(picture: Float[Tensor, "H W 3"]) -> Float[np.ndarray, "H W 3"]:
    import cv2

    unit = np.ascontiguousarray(picture.float().cpu().numpy() / 2 + 0.5)
    return cv2.cvtColor(unit, cv2.COLOR_RGB2Lab)


def _rgb(lab: Float[np.ndarray, "H W 3"]) -> Float[Tensor, "H W 3"]:
    import cv2

    return torch.from_numpy(cv2.cvtColor(lab, cv2.COLOR_Lab2RGB)) * 2 - 1


def _statistics(lab: Float[np.ndarray, "H W 3"]) -> tuple[np.ndarray, np.ndarray]:
    return lab.mean(axis=(0, 1), dtype=np.float64), lab.std(axis=(0, 1), dtype=np.float64)
