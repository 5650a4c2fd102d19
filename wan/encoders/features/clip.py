"""Feature `clip`: what the CLIP vision tower sees in the first picture, and in the last one where both are given."""

from collections.abc import Sequence
import os
from typing import ClassVar

import numpy as np
from torch import Tensor

from common.dtypes import dtype_name
from common.errors import MediaError
from common.media.item import Media
from common.media.picture import to_minus_one_one
from wan.encoders.base import ModelEncoder, ModelKind
from wan.encoders.image import PREFERRED, ImageEncoder
from wan.encoders.specs import Given, clip_spec


class ClipEncoder(ModelEncoder):
    """CLIP features of the given picture(s). `weights`: the tower's file(s); `picture_mode` is only recorded."""

    model: ClassVar[ModelKind] = "image_encoder"
    preferred = PREFERRED
    needs = ("frames",)

    def __init__(self, image_encoder: ImageEncoder,
                 weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *,
                 picture_mode: str = "cover", given: Given = "first") -> None:
        super().__init__(weights)
        self.image_encoder = image_encoder
        self.picture_mode = picture_mode
        self.given = given
        self.spec = clip_spec(given)

    def options(self) -> dict[str, str]:
        """dtype, attention heads, picture mode, and which frames are given."""
        return {"dtype": dtype_name(self.image_encoder.dtype), "heads": str(self.image_encoder.heads),
                "picture_mode": self.picture_mode, "given": self.given}

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"first": "T D"}``, with first+last also ``"last"``, in the model's dtype."""
        frames = self.required(media.frames, "frames")
        if self.given == "first":
            return {"first": self._features(frames[0])}
        if len(frames) < 2:
            raise MediaError("a first+last frame model needs two pictures, and this item has one frame.")
        return {"first": self._features(frames[0]), "last": self._features(frames[-1])}

    def _features(self, picture: np.ndarray) -> Tensor:
        image = to_minus_one_one(picture).transpose(0, 1)  # 1 3 H W
        return self.image_encoder.encode(image)[0].cpu()
