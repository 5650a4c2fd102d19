"""Features `audio2`, `audio3` …: what is heard of the second and further speakers, encoded like the first one's."""

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from common.errors import MediaError
from common.media.item import Media
from common.speakers import sound_need
from wan.encoders.base import Encoder, ModelKind
from wan.encoders.specs import voice_spec


class VoiceEncoder:
    """The encoder `first` of the first speaker's sound, given the sound of `speaker` (from 2) in its place."""

    model: ClassVar[ModelKind | None] = "audio_encoder"

    def __init__(self, first: Encoder, speaker: int) -> None:
        self.first, self.speaker = first, speaker
        self.spec = voice_spec(first.spec, speaker)
        self.needs: tuple[str, ...] = (sound_need(speaker),)

    def options(self) -> dict[str, str]:
        """Those of the first speaker's encoder."""
        return self.first.options()

    def weights_paths(self) -> tuple[Path, ...]:
        """Those of the first speaker's encoder."""
        return self.first.weights_paths()

    def encode(self, media: Media) -> dict[str, Tensor]:
        """What the first speaker's encoder makes of this speaker's sound."""
        if self.speaker not in media.voices:
            raise MediaError(f"feature '{self.spec.name}' needs the sound of speaker {self.speaker}, and this item has "
                             "none.")
        return self.first.encode(replace(media, sound=media.voices[self.speaker], voices={}))
