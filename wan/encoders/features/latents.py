"""Features `latents`, `control_latents`, `reference_latents`: VAE latents of a clip, its control video, a picture."""

from collections.abc import Sequence
import os
from typing import ClassVar

from einops import rearrange
import numpy as np
import torch
from torch import Tensor

from common.dtypes import dtype_name
from common.media.item import Media
from common.media.picture import to_minus_one_one
from wan.encoders.base import ModelEncoder, ModelKind
from wan.encoders.specs import CONTROL_LATENTS, LATENTS, REFERENCE_LATENTS
from wan.encoders.vae import PREFERRED
from wan.modules.vae import Vae


class VaeEncoder(ModelEncoder):
    """What the features made by the VAE share.

    `weights`: the file(s) of the VAE. `picture_mode`: how the pictures came to their size; it is only recorded.
    """

    model: ClassVar[ModelKind] = "vae"
    preferred = PREFERRED

    def __init__(self, vae: Vae, weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *,
                 picture_mode: str = "cover") -> None:
        super().__init__(weights)
        self.vae = vae
        self.picture_mode = picture_mode

    def options(self) -> dict[str, str]:
        """dtype and picture mode."""
        return {"dtype": dtype_name(self.vae.dtype), "picture_mode": self.picture_mode}

    def latents_of(self, *clips: np.ndarray) -> list[Tensor]:
        """Frames ``[N H W 3]`` or pictures ``[H W 3]`` of one shape to normalised latents `16 F H W`, float32, CPU."""
        return list(self.vae.encode(torch.stack([self._video(clip) for clip in clips])).float().cpu())

    def _video(self, frames: np.ndarray) -> Tensor:
        """`3 N H W` in -1…1, or in 0…255 on the model's device: a quarter of the bytes go there."""
        if frames.dtype != np.uint8:
            return to_minus_one_one(frames)
        levels = torch.from_numpy(frames if frames.ndim == 4 else frames[None])
        return rearrange(levels.to(self.vae.device, non_blocking=True), "n h w c -> c n h w")


class LatentsEncoder(VaeEncoder):
    """Latents of the clip's frames."""

    spec = LATENTS
    needs = ("frames",)

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"latents": "16 F H W"}``."""
        return self.encode_batch([media])[0]

    def encode_batch(self, media: Sequence[Media]) -> list[dict[str, Tensor]]:
        """As `encode`, for clips of one size and length."""
        return [{"latents": one} for one in self.latents_of(*(self.required(m.frames, "frames") for m in media))]


class ControlLatentsEncoder(VaeEncoder):
    """Latents of the clip's control video (pose, depth …) for Fun-Control models."""

    spec = CONTROL_LATENTS
    needs = ("control",)

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"latents": "16 F H W"}``."""
        return {"latents": self.latents_of(self.required(media.control, "a control video"))[0]}


class ReferenceLatentsEncoder(VaeEncoder):
    """Latent of the reference picture, one frame."""

    spec = REFERENCE_LATENTS
    needs = ("reference",)

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"latents": "16 1 H W"}``."""
        return {"latents": self.latents_of(self.required(media.reference, "a reference picture"))[0]}
