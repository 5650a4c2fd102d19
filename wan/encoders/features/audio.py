"""Feature `audio`: the hidden states that a preset keeps of the sound, and what else is known of it, by video frame."""

from collections.abc import Sequence
from dataclasses import dataclass
import os
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from common.dtypes import dtype_name
from common.media.item import Media
from common.timebase import AUDIO_SAMPLE_RATE_HZ, full_chunk_rows, omniavatar_frames_for_tokens
from wan.audio_presets import Scope, scope_of
from wan.encoders.audio import PREFERRED
from wan.encoders.audio_base import HearingModel
from wan.encoders.audio_features import RECIPE
from wan.encoders.base import ModelEncoder, ModelKind
from wan.encoders.specs import SILENCE, VAD, audio_spec

RATES = {"before": "frames before the transformer", "after": "50 Hz, then frames", "none": "50 Hz"}

EXACT = "zeros at the end after normalisation"


@dataclass(frozen=True)
class ChunkPadding:
    """Zeros behind the normalised sound until every chunk of a generation is full, as OmniAvatar pads.

    A chunk is `chunk_frames` long, or as long as `max_tokens` allow at the clip's size.
    """

    chunk_frames: int | None = None
    max_tokens: int = 30_000
    overlap: int = 13

    @property
    def is_by_size(self) -> bool:
        """Whether the chunk's length follows from the clip's size."""
        return self.chunk_frames is None

    @property
    def text(self) -> str:
        """For headers and metadata."""
        length = f"{self.max_tokens} tokens" if self.chunk_frames is None else f"{self.chunk_frames} frames"
        return f"full chunks of {length}, overlap {self.overlap}"

    def rows(self, media: Media) -> int:
        """Rows that are heard, padding included."""
        longest = self.chunk_frames
        if longest is None:
            assert media.size is not None, "a whole source has no size"
            longest = omniavatar_frames_for_tokens(self.max_tokens, media.size[1], media.size[0])
        return full_chunk_rows(media.n_frames, longest, self.overlap)


class AudioFeatureEncoder(ModelEncoder):
    """States of the clip's own sound (`scope` clip), or of the whole source file, of which clips are cut (`file`).

    The scope changes the numbers: normalisation, group norm and attention reach over all the sound that is given; so
    does `padding` (None: just to the last frame's end). `more`: `silence`, the states of silence of equal length,
    and `vad`, the share of each frame that is speech. `weights`: the model's files or folder. `stored_dtype`: what the
    states are rounded to; None keeps the model's.
    """

    model: ClassVar[ModelKind] = "audio_encoder"
    preferred = PREFERRED
    settings_files = ("config.json", "preprocessor_config.json")
    needs = ("sound",)

    def __init__(self, audio_encoder: HearingModel,
                 weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, scope: Scope | None = None,
                 padding: ChunkPadding | None = None, more: tuple[str, ...] = (),
                 stored_dtype: torch.dtype | None = None) -> None:
        super().__init__(weights)
        self.audio_encoder = audio_encoder
        self.preset = audio_encoder.preset
        self.scope = scope_of(self.preset, scope)
        self.padding = padding
        self.stored_dtype = stored_dtype or audio_encoder.dtype
        self.spec = audio_spec(self.scope, is_by_frame=self.preset.is_by_frame, more=more,
                               is_by_size=padding is not None and padding.is_by_size)
        self._more = more

    def options(self) -> dict[str, str]:
        """Everything that provenance needs: preset, scope, padding, loudness, rate, states, width, dtypes, recipe."""
        encoder, preset = self.audio_encoder, self.preset
        options = {
            "preset": preset.name, "states": f"{preset.states} {encoder.states}", "width": str(encoder.width),
            "rate": RATES[preset.rate], "loudness": preset.loudness, "scope": self.scope,
            "padding": self.padding.text if self.padding else EXACT if preset.pads else "none",
            "normalisation": "waveform" if encoder.normalises else "none",
            "sample_rate": str(AUDIO_SAMPLE_RATE_HZ), "dtype": dtype_name(encoder.dtype),
            "stored_dtype": dtype_name(self.stored_dtype), "recipe": RECIPE}
        if VAD in self._more:
            from wan.encoders.voice_activity import detector_version

            options[VAD] = detector_version()
        return options | ({SILENCE: "of equal length"} if SILENCE in self._more else {})

    def encode(self, media: Media) -> dict[str, Tensor]:
        """``{"states": "N K D"}`` with a row for each of `media.n_frames` at `media.fps`, and the tensors of `more`."""
        sound = self.required(media.sound, "sound")
        tensors = {"states": self._states(sound, media)}
        if SILENCE in self._more:
            tensors[SILENCE] = self._states(np.zeros_like(sound), media)
        if VAD in self._more:
            from wan.encoders.voice_activity import voiced_share

            tensors[VAD] = voiced_share(sound, media.n_frames, media.fps)
        return tensors

    def _states(self, sound: np.ndarray, media: Media) -> Tensor:
        rows = self.padding.rows(media) if self.padding else media.n_frames
        states = self.audio_encoder.encode(torch.from_numpy(sound), sample_rate=AUDIO_SAMPLE_RATE_HZ, fps=media.fps,
                                           frames=rows)
        kept = states[:media.n_frames] if self.preset.is_by_frame else states
        return kept.to(self.stored_dtype).cpu().contiguous()
