"""OmniAvatar's audio condition: packed speech features added to the tokens, reference picture and mask as channels.

Source: OmniAvatar `models/audio_pack.py`, `models/wan_video_dit.py`. Parameter names are theirs, so that a file maps
key by key; `patch_embedding` alone holds the difference to the base's (`networks.published`). Where theirs is
wrong for batches above one (projections joined on the batch axis), this one is right.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn

from common.errors import ConditionError
from common.features import AUDIO_HALO, FeatureBatch
from common.timebase import VAE_TEMPORAL_STRIDE
from wan.conditions.frames import linear
from wan.conditions.given_frames import CLEAN, GivenFrames, given_mode
from wan.conditions.reference_channels import (
    ReferenceState,
    given_of,
    picture_channels,
    picture_embedding,
    reference_of,
)
from wan.conditions.sound import AudioCondition, AudioSettings, Voices
from wan.modules.hooks import Forward
from wan.modules.norm import LayerNorm
from wan.variants import Variant

FIRST_BLOCK = 2
"""The first block that hears; the last one is depth // 2."""
INIT_GAIN = 0.05
"""Xavier gain of the projections, as in OmniAvatar's training."""


@dataclass(frozen=True)
class OmniAvatarSettings(AudioSettings):
    """Sizes of the condition; the defaults are the released OmniAvatar's."""

    audio_hidden: int = 32
    """Width of the packed audio token."""
    given: str = CLEAN
    """How given frames enter; see `ReferenceChannelsSettings`."""


class AudioPack(nn.Module):
    """Speech of four video frames → one token a latent frame: linear, then layer norm."""

    def __init__(self, audio_dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(VAE_TEMPORAL_STRIDE * audio_dim, hidden)
        self.norm_out = LayerNorm(hidden)

    def forward(self, audio: Float[Tensor, "B N A"]) -> Float[Tensor, "B F E"]:
        """Frame 0 is repeated three times in front, so that the groups are the VAE's: 0000, 1234, 5678 …"""
        padded = torch.cat((audio[:, :1].expand(-1, VAE_TEMPORAL_STRIDE - 1, -1), audio), dim=1)
        packed = rearrange(padded, "b (f t) a -> b f (t a)", t=VAE_TEMPORAL_STRIDE)
        return self.norm_out(linear(self.proj, packed))


class AudioAddition(nn.Module):
    """`audio_proj` and a projection for each hearing block: what is added to all tokens of a latent frame.

    Fresh, it adds exactly zero: `norm_out` starts at zero, and gradients reach it through the projections, which do
    not (OmniAvatar's initialisation).
    """

    def __init__(self, audio_dim: int, hidden: int, dim: int, count: int) -> None:
        super().__init__()
        self.audio_proj = AudioPack(audio_dim, hidden)
        self.audio_cond_projs = nn.ModuleList(nn.Linear(hidden, dim) for _ in range(count))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        for layer in (self.audio_proj.proj, *self.audio_cond_projs):
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight, gain=INIT_GAIN)


def residuals_of(addition: nn.Module, audio: Float[Tensor, "B N A"]) -> Float[Tensor, "B J F D"]:
    """What `audio` adds in each hearing block; `addition` has the two members of `AudioAddition`."""
    tokens = addition.audio_proj(audio)  # type: ignore[operator]
    return torch.stack([linear(project, tokens) for project in addition.audio_cond_projs], dim=1)  # type: ignore


def joined_states(states: Float[Tensor, "B M K D"]) -> Float[Tensor, "B M K1 D"]:
    """OmniAvatar's vector of a frame, by states: the last one, then all."""
    return torch.cat((states[:, :, -1:], states), dim=2)


def clip_vectors(rows: Float[Tensor, "B M R D"]) -> Float[Tensor, "B N A"]:
    """The vectors of the clip's own frames: this design hears nothing beside them."""
    return rows[:, AUDIO_HALO:-AUDIO_HALO].flatten(2)


def last_hearing_block(layers: int) -> int:
    """OmniAvatar's rule: half the depth."""
    return layers // 2


@dataclass(frozen=True)
class Residuals:
    """What is added to the tokens of each latent frame, by hearing block, from each speaker."""

    first_block: int
    residuals: Float[Tensor, "B J F D"]
    """Of the one speaker."""
    others: tuple[Float[Tensor, "B J F D"], ...] = ()
    """With `shares`: of the further speakers, then of silence."""
    shares: Float[Tensor, "B S1 F P"] | None = None
    gains: dict[int, float] = field(default_factory=dict)

    def add(self, i: int, tokens: Float[Tensor, "B L D"], forward: Forward) -> Float[Tensor, "B L D"]:
        """Tokens before block `i` with its residual added to the video tokens."""
        j = i - self.first_block
        gain = self.gains.get(i, 1.0)
        if not 0 <= j < self.residuals.shape[1] or gain == 0:
            return tokens
        video = tokens[:, forward.video].unflatten(1, (forward.grid[0], -1))  # B F P D
        heard = (video + self._residual(j, gain, tokens)).flatten(1, 2)
        if heard.shape == tokens.shape:
            return heard
        return torch.cat((heard, tokens[:, forward.video.stop:]), dim=1)

    def _residual(self, j: int, gain: float, tokens: Tensor) -> Float[Tensor, "B F P D"]:
        """A row for all tokens of a frame, or with several speakers one for each; in the tokens' dtype."""
        own = (self.residuals[:, j] * gain).to(tokens)
        if self.shares is None:
            return own[:, :, None]
        others = [(one[:, j] * gain).to(tokens) for one in self.others]
        return torch.einsum("bsfp,bsfd->bfpd", self.shares.to(tokens), torch.stack((own, *others), dim=1))


def all_residuals(addition: nn.Module, voices: Voices, first_block: int, gains: dict[int, float]) -> Residuals:
    """Residuals of every speaker, and of silence where there are regions: sum m_s c(a_s) + (1 - sum m_s) c(silence)."""
    first, *rest = (residuals_of(addition, clip_vectors(rows)) for rows in voices.rows)
    if voices.regions is None:
        return Residuals(first_block, first, gains=gains)
    silent = residuals_of(addition, clip_vectors(voices.silence))
    return Residuals(first_block, first, (*rest, silent), voices.shares, gains)


class OmniAvatarState(ReferenceState):
    """One forward's additions: residuals of the hearing blocks, and the channels beside the latents."""

    keeps_little: ClassVar[bool] = True

    def __init__(self, sound: Residuals, channels: Float[Tensor, "B X F H W"], patch_embedding: nn.Conv3d,
                 given: GivenFrames | None) -> None:
        super().__init__(channels, patch_embedding, given)
        self.sound = sound

    @property
    def residuals(self) -> Float[Tensor, "B J F D"]:
        """What the first speaker adds, by hearing block and latent frame."""
        return self.sound.residuals

    def before_block(self, i: int, tokens: Float[Tensor, "B L D"], forward: Forward) -> Float[Tensor, "B L D"]:
        """Add the block's residual of a latent frame to all video tokens of that frame."""
        return self.sound.add(i, tokens, forward)


class OmniAvatarAdd(AudioCondition):
    """Audio added before blocks 2 … depth // 2; 16 reference channels and 1 mask channel (0 = given) at the input.

    Absent audio (`batch.present["audio"]` False) is zero features, or encoded silence, on which the biases still act;
    the reference is never dropped. Fresh, it leaves the base bit-equal: `norm_out` and `patch_embedding` start at zero.
    """

    name: ClassVar[str] = "omniavatar_add"
    features: ClassVar[tuple[str, ...]] = ("audio", "reference_latents")
    starts_from_picture: ClassVar[bool] = True
    extra_states: ClassVar[int] = 1
    Settings: ClassVar[type] = OmniAvatarSettings
    settings: OmniAvatarSettings

    def __init__(self, settings: OmniAvatarSettings, variant: Variant) -> None:
        blocks = range(FIRST_BLOCK, last_hearing_block(variant.layers) + 1)
        if not blocks:
            raise ConditionError(f"condition '{self.name}' acts on blocks {FIRST_BLOCK} to depth/2; this model has "
                                 f"{variant.layers} blocks. It needs at least {2 * FIRST_BLOCK}.")
        super().__init__(settings, variant, blocks)
        addition = AudioAddition(self.frame_width, settings.audio_hidden, variant.dim, len(blocks))
        self.audio_proj, self.audio_cond_projs = addition.audio_proj, addition.audio_cond_projs
        self.given = given_mode(settings.given, self.name)
        self.patch_embedding = picture_embedding(variant)

    def read(self, states: Float[Tensor, "B M K D"]) -> Float[Tensor, "B M R D"]:
        """The last state, then all states."""
        return joined_states(states)

    def prepare(self, batch: FeatureBatch, grid: tuple[int, int, int]) -> OmniAvatarState:
        """State from the features `audio` and `reference_latents` and the batch's given frames.

        Raises ConditionError where a feature is missing or its frames or widths are not this clip's or condition's.
        """
        reference = reference_of(self, batch, grid)
        return self._state(self.voices(batch, grid), reference, given_of(batch, self.given))

    def state(self, audio: Float[Tensor, "B N A"], reference: Float[Tensor, "B C 1 H W"], given: GivenFrames | None
              ) -> OmniAvatarState:
        """State from OmniAvatar's audio vectors (last hidden state, then all), one for each of 4n+1 video frames."""
        rows = torch.nn.functional.pad(audio[:, :, None], (0, 0, 0, 0, AUDIO_HALO, AUDIO_HALO))
        return self._state(Voices((rows,), torch.zeros_like(rows), None), reference, given)

    def _state(self, voices: Voices, reference: Tensor, given: GivenFrames | None) -> OmniAvatarState:
        sound = all_residuals(self, voices, FIRST_BLOCK, self.gains)
        channels = picture_channels(reference, sound.residuals.shape[2], given)
        return OmniAvatarState(sound, channels, self.patch_embedding, given)
