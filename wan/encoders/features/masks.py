"""Features `region_masks` and `speaker_regions`: how much of each latent place is face, mouth, or a speaker's."""

from collections.abc import Sequence
import os
from typing import ClassVar

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from common.dtypes import dtype_name
from common.media.item import Media
from common.media.masks import at_latent_frames, at_latent_size, mask_of
from common.timebase import VAE_TEMPORAL_STRIDE
from wan.encoders.base import ModelEncoder, ModelKind
from wan.encoders.specs import REGION_MASKS, REGIONS, SPEAKER_REGIONS_SPEC

STRIDE = 8
"""Pixels of a latent place on each side, in the VAE of Wan 2.1."""


class MaskEncoder(ModelEncoder):
    """What the features made of masks share: no model, the mean over pixels, the maximum over a latent frame's time."""

    model: ClassVar[ModelKind | None] = None
    stored_dtype: ClassVar[torch.dtype]

    def __init__(self, model: None = None, weights: Sequence[str | os.PathLike[str]] = (), *,
                 picture_mode: str = "cover") -> None:
        super().__init__(weights)
        self.picture_mode = picture_mode

    def options(self) -> dict[str, str]:
        """How masks become shares of latent places."""
        return {"dtype": dtype_name(self.stored_dtype), "picture_mode": self.picture_mode,
                "space": f"mean of {STRIDE}x{STRIDE}", "time": f"maximum of {VAE_TEMPORAL_STRIDE}"}

    def shares(self, pictures: np.ndarray, frames: int) -> Float[Tensor, "F H W"]:
        """Masks ``[N H W 3]``, or one for all frames, to shares in 0…1."""
        latent_size = (pictures.shape[1] // STRIDE, pictures.shape[2] // STRIDE)
        small = torch.cat([at_latent_size(mask_of(picture)[None], latent_size) for picture in pictures])
        return at_latent_frames(small, frames).to(self.stored_dtype)


class RegionMasksEncoder(MaskEncoder):
    """Face and mouth of a clip, for the weights of the loss; a region without a mask is 0 everywhere."""

    spec = REGION_MASKS
    needs = ("region_masks",)
    stored_dtype = torch.float16

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"face": "1 F H W", "lip": "1 F H W"}`` in 0…1."""
        masks = self.required(media.region_masks, "a mask of a region")
        found = {region: self.shares(pictures, media.n_frames)[None] for region, pictures in masks.items()}
        nothing = torch.zeros_like(next(iter(found.values())))
        return {region: found.get(region, nothing) for region in REGIONS}


class SpeakerRegionsEncoder(MaskEncoder):
    """Where each speaker of a clip is heard, in the very numbers of a generation."""

    spec = SPEAKER_REGIONS_SPEC
    needs = ("speaker_regions",)
    stored_dtype = torch.float32

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"regions": "S F H W"}`` in 0…1 for S speakers."""
        masks = self.required(media.speaker_regions, "the speakers' places")
        return {"regions": torch.stack([self.shares(pictures, media.n_frames) for pictures in masks])}
