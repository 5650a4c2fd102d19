"""What the audio conditions share: their common settings, who speaks where, silence, and strength by block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import re
from typing import Any, ClassVar

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import ConditionError
from common.features import AFTER, AUDIO_HALO, BEFORE, FeatureBatch
from common.timebase import video_frame_count
from wan.conditions.base import Condition
from wan.variants import Variant

SILENCE = "silence"
"""Tensor of the feature `audio` that holds the states of encoded silence, `B N K D`."""


@dataclass(frozen=True)
class AudioSettings:
    """Settings of every audio condition; the defaults fit wav2vec2-base."""

    audio_states: int = 13
    """Hidden states that the audio encoder gives a frame: layers + 1, also where a condition does not read the first
    one and the feature leaves it out (`multitalk`). 0: not known, as with a released file that tells no more than the
    width of all that it reads of a frame, which is `audio_width` then."""
    audio_width: int = 768
    """Width of one hidden state."""
    null: str = "zeros"
    """What absent sound is: `zeros`, or `silence`, the encoded silence that the feature `audio` holds."""
    audio_gain: str = ""
    """Strength of the audio by block: "0.5" everywhere, or "2-8:0.5,12:0" (others 1); empty: 1 everywhere."""


@dataclass(frozen=True)
class Voices:
    """The sound of a clip as an audio condition hears it, float32, `AUDIO_HALO` rows on each side of the clip."""

    rows: tuple[Float[Tensor, "B M R D"], ...]
    """What the condition reads of each speaker, M = frames + 2 * AUDIO_HALO; silence where a sample has no sound."""
    silence: Float[Tensor, "B M R D"]
    regions: Float[Tensor, "B S F P"] | None
    """Share of each speaker in each token of each latent frame, at most 1 together; None: one speaker everywhere."""

    @property
    def shares(self) -> Float[Tensor, "B S1 F P"]:
        """Shares of the speakers, and last that of nobody, where silence is heard; together 1."""
        assert self.regions is not None
        return torch.cat((self.regions, 1 - self.regions.sum(1, keepdim=True)), dim=1)


class AudioCondition(Condition):
    """Base of the audio conditions: reads `audio`, `voices` and `regions` of the batch alike for all of them.

    A subclass says which blocks it acts on (`blocks_heard`), so that `audio_gain` can be checked and looked up.
    """

    droppable: ClassVar[tuple[str, ...]] = ("audio",)
    extra_states: ClassVar[int] = 0
    """How many more states than the encoder's hidden ones it reads of a frame (fewer: negative); see `read`."""
    mutes_still: ClassVar[bool] = True
    """Row 0 is zero where frame 0 is a still picture (`first_is_still`), because nothing is said in it."""
    settings: AudioSettings

    def __init__(self, settings: Any, variant: Variant, blocks_heard: Sequence[int]) -> None:
        super().__init__(settings, variant)
        if settings.null not in ("zeros", SILENCE):
            raise ConditionError(f"condition '{self.name}': null = '{settings.null}' is unknown. Use zeros or silence.")
        self.blocks_heard = tuple(blocks_heard)
        self.gains = parse_gain(settings.audio_gain, self.blocks_heard, self.name)

    @classmethod
    def settings_from_features(cls, features: Mapping[str, Mapping[str, Tensor]],
                               told: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, str]:
        """The audio encoder's states and width."""
        if "audio" not in features:
            return {}
        states, width = features["audio"]["states"].shape[-2:]
        is_left_out = cls.extra_states < 0 and (told or {}).get("audio", {}).get("states", "").startswith("layers")
        return {"audio_states": str(states - cls.extra_states if is_left_out else states), "audio_width": str(width)}

    def fits(self, states: int, width: int) -> bool:
        """Whether the condition can read frames of so many hidden states of that width.

        One that does not read the first states also takes features which leave exactly those out.
        """
        settings = self.settings
        counts = {states, states - self.extra_states} if self.extra_states < 0 else {states}
        if settings.audio_states:
            return width == settings.audio_width and settings.audio_states in counts
        return any((count + self.extra_states) * width == settings.audio_width for count in counts)

    @property
    def wanted_rows(self) -> str:
        """What it reads of a frame, for messages."""
        settings = self.settings
        return (f"{settings.audio_states} states of width {settings.audio_width}" if settings.audio_states
                else f"{settings.audio_width} numbers")

    @property
    def frame_width(self) -> int:
        """Numbers that the condition reads of a frame."""
        settings = self.settings
        return settings.audio_width * (settings.audio_states + self.extra_states if settings.audio_states else 1)

    def read(self, states: Float[Tensor, "B M K D"]) -> Float[Tensor, "B M R D"]:
        """The states that the condition reads, of all that the encoder gives, in its order."""
        return states

    def voices(self, batch: FeatureBatch, grid: tuple[int, int, int]) -> Voices:
        """The sound of clips of `grid` tokens.

        Raises ConditionError where the feature is missing, of other frames or widths, or where speakers and regions
        do not agree.
        """
        present = batch.present.get("audio")
        if "audio" not in batch.features and present is not None and not present.any():
            silent = self._no_sound(grid, len(present))
            return Voices((silent,), silent, None)
        own = self.feature(batch, "audio")
        silence = self._silence(own, grid)
        rows = []
        for voice in (own, *batch.voices):
            heard = self._rows(voice, "states", grid)
            if present is not None:
                heard = torch.where(present.to(heard.device)[:, None, None, None], heard, silence)
            rows.append(self._muted(heard, batch))
        return Voices(tuple(rows), self._muted(silence, batch), self._regions(batch, grid))

    def _no_sound(self, grid: tuple[int, int, int], size: int) -> Tensor:
        if self.settings.null == SILENCE:
            raise ConditionError(f"condition '{self.name}': null = silence needs the encoded silence in the feature "
                                 "'audio', and the batch has none. Encode it, or use null = zeros.")
        width = self.settings.audio_width
        return self.float32(torch.zeros(size, video_frame_count(grid[0]) + 2 * AUDIO_HALO, self.frame_width // width,
                                        width))

    def _silence(self, audio: Mapping[str, Tensor], grid: tuple[int, int, int]) -> Tensor:
        if self.settings.null != SILENCE:
            return torch.zeros_like(self._rows(audio, "states", grid))
        if SILENCE not in audio:
            return self._no_sound(grid, 0)
        return self._rows({SILENCE: audio[SILENCE]}, SILENCE, grid)

    def _rows(self, audio: Mapping[str, Tensor], key: str, grid: tuple[int, int, int]) -> Tensor:
        """What is read of the clip's rows and those beside it; where the batch has none, of its own edge rows."""
        states = self.float32(audio[key])  # B N K D
        settings, frames = self.settings, video_frame_count(grid[0])
        found = [states.shape[1], *states.shape[2:]]
        wanted = (str([frames, settings.audio_states, settings.audio_width]) if settings.audio_states
                  else f"{frames} frames of which {settings.audio_width} numbers are read")
        if found[0] != frames or not self.fits(*found[1:]):
            raise ConditionError(
                f"condition '{self.name}': audio features are {found} (frames, states, width); expected {wanted}. "
                "Encode the sound of this clip with the audio encoder of this condition.")
        sides = []
        for name, edge in ((BEFORE, states[:, :1]), (AFTER, states[:, -1:])):
            side = audio.get(name)
            if side is not None and side.shape[1:] != (AUDIO_HALO, *states.shape[2:]):
                raise ConditionError(f"condition '{self.name}': the sound {name} the clip is {list(side.shape[1:])}; "
                                     f"expected {[AUDIO_HALO, *states.shape[2:]]}.")
            sides.append(edge.expand(-1, AUDIO_HALO, -1, -1) if side is None else self.float32(side))
        return self.read(torch.cat((sides[0], states, sides[1]), dim=1))

    def _muted(self, rows: Tensor, batch: FeatureBatch) -> Tensor:
        if batch.first_is_still is None or not self.mutes_still:
            return rows
        audible = ~batch.first_is_still.to(rows.device)[:, None, None, None]
        first = rows[:, AUDIO_HALO:AUDIO_HALO + 1] * audible
        return torch.cat((rows[:, :AUDIO_HALO], first, rows[:, AUDIO_HALO + 1:]), dim=1)

    def _regions(self, batch: FeatureBatch, grid: tuple[int, int, int]) -> Tensor | None:
        speakers = 1 + len(batch.voices)
        if batch.regions is None:
            if speakers > 1:
                raise ConditionError(f"{speakers} speakers and no regions: say where each of them is.")
            return None
        frames, *sides = (n * p for n, p in zip(grid, self.variant.patch, strict=True))
        if tuple(batch.regions.shape[1:]) != (speakers, frames, *sides):
            raise ConditionError(f"speaker regions are {list(batch.regions.shape[1:])} (speakers, latent frames, "
                                 f"height, width); expected {[speakers, frames, *sides]}.")
        regions = self.float32(batch.regions)
        patches = F.avg_pool2d(regions.flatten(1, 2), self.variant.patch[1:])
        patches = rearrange(patches, "b (s f) h w -> b s f (h w)", s=speakers)
        return patches / patches.sum(1, keepdim=True).clamp(min=1)


def parse_gain(text: str, blocks: Sequence[int], name: str) -> dict[int, float]:
    """{block: strength} of an `audio_gain`, blocks of strength 1 left out.

    Raises ConditionError for a text of another form, and for blocks that the condition `name` does not act on.
    """
    text = text.strip()
    if not text:
        return {}
    gains: dict[int, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"(?:(\d+)(?:-(\d+))?:)?(-?\d+(?:\.\d+)?)", part.strip())
        if match is None:
            raise ConditionError(f"condition '{name}': audio_gain '{part.strip()}' is not understood. Write a number, "
                                 "or blocks and numbers such as 2-8:0.5,12:0.")
        first = int(match[1]) if match[1] else min(blocks)
        last = int(match[2] or match[1]) if match[1] else max(blocks)
        named = [block for block in blocks if first <= block <= last]
        if not named:
            raise ConditionError(f"condition '{name}': audio_gain '{part.strip()}' names no block that hears. They "
                                 f"are {', '.join(map(str, blocks))}.")
        gains.update(dict.fromkeys(named, float(match[3])))
    return {block: gain for block, gain in gains.items() if gain != 1}
