"""Feature `text`: umT5 hidden states of the caption, and of what stands for a caption that training drops."""

from collections.abc import Sequence
import os
from typing import ClassVar

from torch import Tensor

from common.dtypes import dtype_name
from common.fingerprint import text_hash
from common.media.item import Media
from wan.encoders.base import ModelEncoder, ModelKind
from wan.encoders.specs import NULL, TEXT, NullText, text_spec
from wan.encoders.text import PREFERRED, TextEncoder
from wan.encoders.tokenizer import MAX_TOKENS
from wan.variants import OMNIAVATAR_NEGATIVE_PROMPT

NULL_TEXTS: dict[NullText, str] = {"empty": "", "negative": OMNIAVATAR_NEGATIVE_PROMPT}
"""Kind of null text -> the prompt that is encoded for it."""


class TextFeatureEncoder(ModelEncoder):
    """Hidden states of a caption without padding. `weights`: the text encoder's file(s).

    `null` adds those of a prompt that training shows in place of a dropped caption; they are encoded once.
    WeightsError at once when no tokenizer was found.
    """

    model: ClassVar[ModelKind] = "text_encoder"
    preferred = PREFERRED
    spec = TEXT
    needs = ("caption",)

    def __init__(self, text_encoder: TextEncoder,
                 weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, null: NullText | None = None
                 ) -> None:
        super().__init__(weights)
        self.text_encoder = text_encoder
        self.null = null
        self.spec = text_spec(null)
        self._null_states: Tensor | None = None
        self._tokenizer = text_encoder.tokenizer.fingerprint

    def options(self) -> dict[str, str]:
        """dtype, float8 storage where there is one, the tokenizer's content, longest prompt, how the text is cleaned,
        kind and hash of the null text."""
        null = {} if self.null is None else {NULL: f"{self.null} {text_hash(NULL_TEXTS[self.null])}"}
        fp8 = self.text_encoder.fp8
        stored = {} if fp8 is None else {"weights": f"{dtype_name(fp8.dtype)} {fp8.mode} {fp8.block}"}
        return {"dtype": dtype_name(self.text_encoder.dtype), "tokenizer": self._tokenizer,
                "max_tokens": str(MAX_TOKENS), "cleaning": "wan2.1", **stored, **null}

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"hidden": "L D"}`` in the model's dtype, and ``null``; an empty text has the end token alone."""
        return self.encode_batch([media])[0]

    def encode_batch(self, media: Sequence[Media]) -> list[dict[str, Tensor]]:
        """As `encode`, for several captions at once; equal to one by one but for rounding."""
        captions = [self.required(one.caption, "a caption") for one in media]
        found = [{"hidden": states.cpu()}
                 for states in self.text_encoder.encode(captions, batch_size=max(len(captions), 1))]
        if self.null is not None:
            if self._null_states is None:
                self._null_states = self.text_encoder.encode([NULL_TEXTS[self.null]])[0].cpu()
            for one in found:
                one[NULL] = self._null_states
        return found
