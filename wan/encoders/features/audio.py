"""Feature `audio`: all hidden states of wav2vec2 at every video frame."""

from collections.abc import Sequence
import os
from typing import ClassVar

import torch
from torch import Tensor

from common.dtypes import dtype_name
from common.media.item import Media
from common.timebase import AUDIO_SAMPLE_RATE_HZ
from wan.encoders.audio import PREFERRED, AudioEncoder
from wan.encoders.audio_features import RECIPE
from wan.encoders.base import ModelEncoder, ModelKind
from wan.encoders.specs import Scope, audio_spec


class AudioFeatureEncoder(ModelEncoder):
    """States of the clip's own sound (`scope` clip), or of the whole source file, of which clips are cut (`file`).

    The scope changes the numbers: normalisation, group norm and attention reach over all the sound that is given.
    `weights`: the model's files or folder. `stored_dtype`: what the states are rounded to; None keeps the model's.
    """

    model: ClassVar[ModelKind] = "audio_encoder"
    preferred = PREFERRED
    settings_files = ("config.json", "preprocessor_config.json")
    needs = ("sound",)

    def __init__(self, audio_encoder: AudioEncoder,
                 weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *,
                 scope: Scope = "file", stored_dtype: torch.dtype | None = None) -> None:
        super().__init__(weights)
        self.audio_encoder = audio_encoder
        self.scope = scope
        self.stored_dtype = stored_dtype or audio_encoder.dtype
        self.spec = audio_spec(scope)

    def options(self) -> dict[str, str]:
        """Everything that provenance needs: scope, padding, normalisation, rate, states, dtypes, recipe."""
        encoder = self.audio_encoder
        return {"dtype": dtype_name(encoder.dtype), "stored_dtype": dtype_name(self.stored_dtype),
                "scope": self.scope, "padding": "zeros at the end after normalisation",
                "normalisation": "waveform" if encoder.normalises else "none",
                "sample_rate": str(AUDIO_SAMPLE_RATE_HZ), "states": f"all {encoder.states}", "recipe": RECIPE}

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"states": "N K D"}`` with a row for each of `media.n_frames` at `media.fps`."""
        sound = self.required(media.sound, "sound")
        states = self.audio_encoder.encode(torch.from_numpy(sound), sample_rate=AUDIO_SAMPLE_RATE_HZ, fps=media.fps,
                                           frames=media.n_frames)
        return {"states": states.to(self.stored_dtype).cpu()}
