"""Feature `text`: umT5 hidden states of the caption."""

from collections.abc import Sequence
import os
from typing import ClassVar

from torch import Tensor

from common.dtypes import dtype_name
from common.media.item import Media
from wan.encoders.base import ModelEncoder, ModelKind
from wan.encoders.specs import TEXT
from wan.encoders.text import PREFERRED, TextEncoder
from wan.encoders.tokenizer import MAX_TOKENS


class TextFeatureEncoder(ModelEncoder):
    """Hidden states of a caption without padding. `weights`: the text encoder's file(s).

    WeightsError at once when no tokenizer was found.
    """

    model: ClassVar[ModelKind] = "text_encoder"
    preferred = PREFERRED
    spec = TEXT
    needs = ("caption",)

    def __init__(self, text_encoder: TextEncoder,
                 weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
        super().__init__(weights)
        self.text_encoder = text_encoder
        self._tokenizer = text_encoder.tokenizer.fingerprint

    def options(self) -> dict[str, str]:
        """dtype, the tokenizer's content, longest prompt, and how the text is cleaned."""
        return {"dtype": dtype_name(self.text_encoder.dtype), "tokenizer": self._tokenizer,
                "max_tokens": str(MAX_TOKENS), "cleaning": "wan2.1"}

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"hidden": "L D"}`` in the model's dtype; an empty caption has the end token alone."""
        caption = self.required(media.caption, "a caption")
        return {"hidden": self.text_encoder.encode([caption])[0].cpu()}
