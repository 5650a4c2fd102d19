"""Cross-attention from each latent frame to the sound around it, in every block: MultiTalk's and InfiniteTalk's design.

Source: MultiTalk / InfiniteTalk (`AudioProjModel`, `SingleStreamAttention`). Parameter names are theirs, so that a
released file maps key by key. They start from an image-to-video model; the picture is then the base's own affair.
Several speakers are kept apart by region masks on the attention's output, or two of them as in MultiTalk (`labels`).
"""

from dataclasses import dataclass
from typing import ClassVar

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConditionError
from common.features import AUDIO_HALO, FeatureBatch
from wan.conditions.base import ConditionState
from wan.conditions.frames import FIRST_WINDOW, LATER_WINDOW, add_to_video, by_frame, linear, windows
from wan.conditions.labels import SPANS, attention_to, label, sound_positions, turn
from wan.conditions.sound import AudioCondition, AudioSettings, Voices
from wan.modules.attention import attend
from wan.modules.hooks import Forward
from wan.modules.norm import LayerNorm
from wan.variants import Variant

MASK, LROPE = "mask", "lrope"


@dataclass(frozen=True)
class FrameCrossAttentionSettings(AudioSettings):
    """Sizes of the condition; the defaults are MultiTalk's."""

    audio_hidden: int = 512
    """Width inside the audio projection."""
    audio_tokens: int = 32
    """Tokens that a latent frame attends to."""
    token_width: int = 768
    """Width of one of them."""
    speakers: str = MASK
    """How speakers are kept apart: `mask`, each one's attention times its region, or `lrope`, two of them by
    MultiTalk's rotary labels, which its released weights were trained with (one, or three and more: as `mask`)."""


class AudioProjection(nn.Module):
    """A window of hidden states around each latent frame → its tokens (MultiTalk's `AudioProjModel`)."""

    def __init__(self, frame_width: int, settings: FrameCrossAttentionSettings) -> None:
        super().__init__()
        hidden = settings.audio_hidden
        self.token_width = settings.token_width
        self.proj1 = nn.Linear(FIRST_WINDOW * frame_width, hidden)
        self.proj1_vf = nn.Linear(LATER_WINDOW * frame_width, hidden)
        self.proj2 = nn.Linear(hidden, hidden)
        self.proj3 = nn.Linear(hidden, settings.audio_tokens * settings.token_width)
        self.norm = LayerNorm(settings.token_width)

    def forward(self, rows: Float[Tensor, "B M R D"]) -> Float[Tensor, "B F C W"]:
        """C tokens a latent frame; `rows` begin and end `AUDIO_HALO` beside the clip."""
        first, later = (window.flatten(2) for window in windows(rows))
        hidden = F.relu(torch.cat((linear(self.proj1, first), linear(self.proj1_vf, later)), dim=1))
        tokens = linear(self.proj3, F.relu(linear(self.proj2, hidden)))
        return self.norm(tokens.unflatten(-1, (-1, self.token_width)))


class AudioCrossAttention(nn.Module):
    """Queries of the video, keys and values of the sound; no norm of either, no gate. `proj` starts at zero."""

    def __init__(self, variant: Variant, token_width: int) -> None:
        super().__init__()
        dim = variant.dim
        self.heads = variant.heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(token_width, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        for layer in (self.q_linear, self.kv_linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def queries(self, tokens: Float[Tensor, "BF P D"]) -> Float[Tensor, "BF P N K"]:
        """Queries by head."""
        return linear(self.q_linear, tokens).unflatten(-1, (self.heads, -1))

    def keys_and_values(self, sound: Float[Tensor, "BF C W"], like: Tensor
                        ) -> tuple[Float[Tensor, "BF C N K"], Float[Tensor, "BF C N K"]]:
        """Keys and values by head, in the dtype of `like`; the rows of the keys come first in `kv_linear`."""
        keys, values = linear(self.kv_linear, sound.to(like)).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return keys, values


class HearingBlock(nn.Module):
    """What is added to one block of the base."""

    def __init__(self, variant: Variant, token_width: int) -> None:
        super().__init__()
        self.norm_x = LayerNorm(variant.dim, eps=variant.eps)
        self.audio_cross_attn = AudioCrossAttention(variant, token_width)


class FrameCrossAttentionState(ConditionState):
    """Tokens of every speaker's sound for one forward."""

    def __init__(self, condition: "FrameCrossAttention", sound: tuple[Float[Tensor, "B F C W"], ...],
                 regions: Float[Tensor, "B S F P"] | None) -> None:
        self.condition = condition
        self.sound = sound
        self.regions = regions

    def after_cross_attention(self, i: int, tokens: Float[Tensor, "B L D"], forward: Forward
                              ) -> Float[Tensor, "B L D"]:
        """x + proj(attention(norm_x(x), sound of x's latent frame)); with regions, each speaker's output times its."""
        gain = self.condition.gains.get(i, 1.0)
        if gain == 0:
            return tokens
        block = self.condition.blocks[i]
        assert isinstance(block, HearingBlock)
        attention = block.audio_cross_attn
        queries = attention.queries(block.norm_x(by_frame(tokens, forward)))
        added = linear(attention.proj, self.heard(i, attention, queries))
        return add_to_video(tokens, added if gain == 1 else added * gain, forward)

    def heard(self, i: int, attention: AudioCrossAttention, queries: Float[Tensor, "BF P N K"]
              ) -> Float[Tensor, "BF P D"]:
        """Attention of block `i` to every speaker's sound, times its region, summed."""
        total: Tensor | None = None
        for s, sound in enumerate(self.sound):
            keys, values = attention.keys_and_values(rearrange(sound, "b f c w -> (b f) c w"), queries)
            heard = attend(queries, keys, values).flatten(2)
            if self.regions is not None:
                heard = heard * rearrange(self.regions[:, s], "b f p -> (b f) p 1").to(heard)
            total = heard if total is None else total + heard
        assert total is not None
        return total


class LabelledState(FrameCrossAttentionState):
    """Two speakers told apart by rotary labels: each block looks at its own self-attention for where they are."""

    def __init__(self, condition: "FrameCrossAttention", sound: tuple[Float[Tensor, "B F C W"], ...],
                 regions: Float[Tensor, "B S F P"]) -> None:
        super().__init__(condition, sound, regions)
        speakers = regions[:, :, 0] > 0.5
        self.places = torch.cat((speakers, ~speakers.any(1, keepdim=True)), dim=1)  # B 3 P
        self.positions: dict[int, Float[Tensor, "B L"]] = {}

    def self_attention(self, i: int, query: Float[Tensor, "B L N K"], key: Float[Tensor, "B L N K"],
                       value: Float[Tensor, "B L N K"], forward: Forward) -> None:
        """Keep the positions of block `i` for its audio attention; no gradient goes through them."""
        first_frame = forward.grid[1] * forward.grid[2]
        self.positions[i] = label(attention_to(query[:, forward.video], key[:, :first_frame], self.places))

    def heard(self, i: int, attention: AudioCrossAttention, queries: Float[Tensor, "BF P N K"]
              ) -> Float[Tensor, "BF P D"]:
        """Attention of block `i` to both sounds at once, queries and keys turned by their labels."""
        frames = self.sound[0].shape[1]
        labels = rearrange(self.positions.pop(i), "b (f p) -> (b f) p", f=frames)
        both = rearrange(torch.cat(self.sound, dim=2), "b f c w -> (b f) c w")
        keys, values = attention.keys_and_values(both, queries)
        keys = turn(keys, sound_positions(self.sound[0].shape[2], keys))
        return attend(turn(queries, labels), keys, values).flatten(2)


class FrameCrossAttention(AudioCondition):
    """Every block attends to 32 tokens of the sound around each latent frame: two video frames more on either side.

    Absent sound is zero features (or encoded silence), which still make tokens. Fresh, it leaves the base bit-equal:
    `proj` starts at zero. Queries start from small random weights, because a condition is built from the model's
    sizes and not its weights. Reads all hidden states but the first, and frame 0 even where it is a still picture, as
    the released weights do.
    """

    name: ClassVar[str] = "frame_xattn"
    features: ClassVar[tuple[str, ...]] = ("audio",)
    hears: ClassVar[tuple[int, int]] = (AUDIO_HALO, AUDIO_HALO)
    extra_states: ClassVar[int] = -1
    mutes_still: ClassVar[bool] = False
    Settings: ClassVar[type] = FrameCrossAttentionSettings
    settings: FrameCrossAttentionSettings

    def __init__(self, settings: FrameCrossAttentionSettings, variant: Variant) -> None:
        if settings.speakers not in (MASK, LROPE):
            raise ConditionError(f"condition '{self.name}': speakers = '{settings.speakers}' is unknown. Use mask or "
                                 "lrope.")
        super().__init__(settings, variant, range(variant.layers))
        self.audio_proj = AudioProjection(self.frame_width, settings)
        self.blocks = nn.ModuleList(HearingBlock(variant, settings.token_width) for _ in range(variant.layers))

    def read(self, states: Float[Tensor, "B M K D"]) -> Float[Tensor, "B M R D"]:
        """The layers' outputs: without the transformer's input, where the feature holds it."""
        return states[:, :, states.shape[2] - self.frame_width // states.shape[3]:]

    def prepare(self, batch: FeatureBatch, grid: tuple[int, int, int]) -> FrameCrossAttentionState:
        """State from the feature `audio`; ConditionError where it is missing or of other frames or widths."""
        voices: Voices = self.voices(batch, grid)
        sound = tuple(self.audio_proj(rows) for rows in voices.rows)
        if self.settings.speakers == LROPE and len(sound) == len(SPANS) and voices.regions is not None:
            return LabelledState(self, sound, voices.regions)
        return FrameCrossAttentionState(self, sound, voices.regions)
