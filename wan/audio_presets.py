"""How each family of models hears: a table of presets. Imports no torch, so that command lines can list it.

Sources: audio.md 1.1, 2.1 to 2.6 and 5.1, which describe the public code of each project.
"""

from dataclasses import dataclass, replace
import re
from typing import Literal

from common.errors import ConfigError

PresetName = Literal["omniavatar", "multitalk", "s2v", "fantasy", "whisper"]
Scope = Literal["file", "clip"]
"""How much sound an audio encoder hears at once: the whole source file, or the clip's span alone."""

GROUPS = 4
"""Groups of layers whose means the preset `whisper` keeps, beside the last state."""


@dataclass(frozen=True)
class AudioPreset:
    """Model, states, rate and loudness: all that decides a row of the feature `audio` beside weights and padding."""

    name: PresetName
    model: Literal["wav2vec2", "whisper"]
    """`model_type` of the encoder's config.json."""
    released: str
    """The encoder that the project uses."""
    states: Literal["all", "layers", "last", "groups"]
    """Which hidden states are kept. `all`: the transformer's input and every layer; `layers`: without the input;
    `last`: the last layer alone; `groups`: means of four groups of layers, then the last layer."""
    rate: Literal["before", "after", "none"]
    """Where 50 Hz become the frame rate: before the transformer, after it, or nowhere (rows at 50 Hz)."""
    used_by: str
    lufs: float | None = None
    """Loudness that the sound is brought to before anything else; None leaves it as it is."""
    pads: bool = False
    """Whether zeros stand behind the sound where frames go on: the transformer hears them."""

    @property
    def is_by_frame(self) -> bool:
        """Whether a row belongs to a video frame, which every condition of ours reads."""
        return self.rate != "none"

    def count(self, layers: int) -> int:
        """States of a row, for an encoder of so many layers."""
        return {"all": layers + 1, "layers": layers, "last": 1, "groups": GROUPS + 1}[self.states]

    @property
    def loudness(self) -> str:
        """The loudness as text, for headers and metadata."""
        return "as it is" if self.lufs is None else f"{self.lufs:g} LUFS"


PRESETS: dict[str, AudioPreset] = {preset.name: preset for preset in (
    AudioPreset("omniavatar", "wav2vec2", "facebook/wav2vec2-base-960h", "all", "before", "OmniAvatar", pads=True),
    AudioPreset("multitalk", "wav2vec2", "TencentGameMate/chinese-wav2vec2-base", "layers", "before",
                "MultiTalk, InfiniteTalk", lufs=-23.0, pads=True),
    AudioPreset("s2v", "wav2vec2", "wav2vec2-large-xlsr-53-english", "all", "after", "Wan2.2-S2V"),
    AudioPreset("fantasy", "wav2vec2", "facebook/wav2vec2-base-960h", "last", "none", "FantasyTalking"),
    AudioPreset("whisper", "whisper", "openai/whisper-large-v3", "groups", "after", "LongCat-Video-Avatar 1.5",
                lufs=-23.0),
)}
OMNIAVATAR = PRESETS["omniavatar"]


def find_preset(name: str, loudness: str | None = None) -> AudioPreset:
    """The preset `name`, at another `loudness` (as a flag or `AudioPreset.loudness` writes it) where one is given."""
    preset = PRESETS[name]
    return preset if loudness is None else replace(preset, lufs=parse_loudness(loudness))


def parse_loudness(text: str) -> float | None:
    """LUFS of "-23", "-23 LUFS"; None of "none" and "as it is". ConfigError for another text or outside -70 to 0."""
    if text in ("none", "as it is"):
        return None
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)( LUFS)?", text)
    if match is None or not -70 <= float(match[1]) <= 0:
        raise ConfigError(f"--audio_loudness {text}: expected none, or LUFS from -70 to 0 such as -23.")
    return float(match[1])


def scope_of(preset: AudioPreset, asked: Scope | None) -> Scope:
    """The scope that was asked for; else a preset without frames hears each clip alone, the others the whole file."""
    return asked or ("file" if preset.is_by_frame else "clip")
