"""Feature `image_latents`: the mask and latent channels of image-to-video and first+last frame models."""

from collections.abc import Sequence
import os

from torch import Tensor

from common.errors import MediaError
from common.media.item import Media
from common.media.picture import to_minus_one_one
from wan.conditions.image_latent import image_channels, image_conditioning_video
from wan.encoders.features.latents import VaeEncoder
from wan.encoders.specs import IMAGE_LATENTS, Given
from wan.modules.vae import Vae


class ImageLatentsEncoder(VaeEncoder):
    """20 channels: 4 of the mask, then the latents of a video that is grey but for the given picture(s)."""

    spec = IMAGE_LATENTS
    needs = ("frames",)

    def __init__(self, vae: Vae, weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *,
                 picture_mode: str = "cover", given: Given = "first") -> None:
        super().__init__(vae, weights, picture_mode=picture_mode)
        self.given = given

    def options(self) -> dict[str, str]:
        """dtype, picture mode, and which frames are given."""
        return {**super().options(), "given": self.given}

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"latents": "20 F H W"}``; of `media.frames` only the first is looked at, with first+last also the last.

        So a generation gives its one or two pictures and says the length with `n_frames`.
        """
        frames = self.required(media.frames, "frames")
        has_last = self.given == "first_last"
        if has_last and len(frames) < 2:
            raise MediaError("a first+last frame model needs two pictures, and this item has one frame.")
        first = to_minus_one_one(frames[0])[:, 0]
        last = to_minus_one_one(frames[-1])[:, 0] if has_last else None
        # Built where it is encoded: most of it is grey, and that need not travel.
        on_device = [None if one is None else one.to(self.vae.device) for one in (first, last)]
        assert on_device[0] is not None
        video = image_conditioning_video(on_device[0], on_device[1], media.n_frames)
        latents = self.vae.encode(video[None])[0].float().cpu()
        return {"latents": image_channels(latents, last_given=has_last)}
