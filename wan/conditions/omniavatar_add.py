"""OmniAvatar's audio condition: packed speech features added to the tokens, reference picture and mask as channels.

Source: OmniAvatar `models/audio_pack.py`, `models/wan_video_dit.py`. Parameter names are theirs, so that a file maps
key by key; `patch_embedding` alone holds the difference to the base's (see `split_patch_embedding`). Where theirs is
wrong for batches above one (projections joined on the batch axis), this one is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from einops import rearrange, repeat
from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConditionError
from common.features import FeatureBatch
from common.timebase import VAE_TEMPORAL_STRIDE, video_frame_count
from wan.conditions.base import Condition, ConditionState
from wan.conditions.given_frames import GivenFrames
from wan.modules.hooks import Forward
from wan.variants import Variant

FIRST_BLOCK = 2
"""The first block that hears; the last one is depth // 2."""
INIT_GAIN = 0.05
"""Xavier gain of the projections, as in OmniAvatar's training."""


@dataclass(frozen=True)
class OmniAvatarSettings:
    """Sizes of the condition; the defaults are the released OmniAvatar's."""

    audio_hidden: int = 32
    """Width of the packed audio token."""
    audio_states: int = 13
    """Hidden states that the audio encoder gives a frame (layers + 1)."""
    audio_width: int = 768
    """Width of one hidden state."""


class AudioPack(nn.Module):
    """Speech of four video frames → one token a latent frame: linear, then layer norm."""

    def __init__(self, audio_dim: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(VAE_TEMPORAL_STRIDE * audio_dim, hidden)
        self.norm_out = nn.LayerNorm(hidden)

    def forward(self, audio: Float[Tensor, "B N A"]) -> Float[Tensor, "B F E"]:
        """Frame 0 is repeated three times in front, so that the groups are the VAE's: 0000, 1234, 5678 …"""
        padded = torch.cat((audio[:, :1].expand(-1, VAE_TEMPORAL_STRIDE - 1, -1), audio), dim=1)
        packed = rearrange(padded, "b (f t) a -> b f (t a)", t=VAE_TEMPORAL_STRIDE)
        return self.norm_out(self.proj(packed))


class OmniAvatarState(ConditionState):
    """One forward's additions: residuals of the hearing blocks, and the channels beside the latents."""

    def __init__(self, residuals: Float[Tensor, "B J F D"], channels: Float[Tensor, "B X F H W"],
                 patch_embedding: nn.Conv3d, given: GivenFrames | None) -> None:
        self.residuals = residuals
        self.channels = channels
        self.patch_embedding = patch_embedding
        self.given = given

    def added_patches(self, latents: Float[Tensor, "B C F H W"], forward: Forward) -> Float[Tensor, "B D F h w"]:
        """Delta on the base's channels and the contribution of reference and mask."""
        conv = self.patch_embedding
        assert conv.bias is not None
        joined = torch.cat((latents, self.channels.to(latents)), dim=1)
        return F.conv3d(joined, conv.weight.to(latents), conv.bias.to(latents), stride=conv.stride)

    def before_block(self, i: int, tokens: Float[Tensor, "B L D"], forward: Forward) -> Float[Tensor, "B L D"]:
        """Add the block's residual of a latent frame to all video tokens of that frame."""
        j = i - FIRST_BLOCK
        if not 0 <= j < self.residuals.shape[1]:
            return tokens
        frames, *_ = forward.grid
        residual = self.residuals[:, j, :, None].to(tokens)  # B F 1 D
        heard = (tokens[:, forward.video].unflatten(1, (frames, -1)) + residual).flatten(1, 2)
        if heard.shape == tokens.shape:
            return heard
        return torch.cat((heard, tokens[:, forward.video.stop:]), dim=1)


class OmniAvatarAdd(Condition):
    """Audio added before blocks 2 … depth // 2; 16 reference channels and 1 mask channel (0 = given) at the input.

    Absent audio (`batch.present["audio"]` False) is zero features, on which the biases still act; the reference is
    never dropped. Fresh, it leaves the base bit-equal: `norm_out` and `patch_embedding` start at zero, and gradients
    reach the rest through the projections, which do not.
    """

    name: ClassVar[str] = "omniavatar_add"
    features: ClassVar[tuple[str, ...]] = ("audio", "reference_latents")
    droppable: ClassVar[tuple[str, ...]] = ("audio",)
    starts_from_picture: ClassVar[bool] = True
    Settings: ClassVar[type] = OmniAvatarSettings
    settings: OmniAvatarSettings

    def __init__(self, settings: OmniAvatarSettings, variant: Variant) -> None:
        super().__init__(settings, variant)
        count = variant.layers // 2 - FIRST_BLOCK + 1
        if count < 1:
            raise ConditionError(f"condition '{self.name}' acts on blocks {FIRST_BLOCK} to depth/2; this model has "
                                 f"{variant.layers} blocks. It needs at least {2 * FIRST_BLOCK}.")
        self.audio_dim = (settings.audio_states + 1) * settings.audio_width
        self.audio_proj = AudioPack(self.audio_dim, settings.audio_hidden)
        self.audio_cond_projs = nn.ModuleList(nn.Linear(settings.audio_hidden, variant.dim) for _ in range(count))
        self.patch_embedding = nn.Conv3d(2 * variant.latent_channels + 1, variant.dim, kernel_size=variant.patch,
                                         stride=variant.patch)
        self.reset()

    def reset(self) -> None:
        """Initial values: those of OmniAvatar's training but for the patch embedding, which starts at zero."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        for linear in (self.audio_proj.proj, *self.audio_cond_projs):
            nn.init.xavier_uniform_(linear.weight, gain=INIT_GAIN)

    @classmethod
    def settings_from_features(cls, features: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
        """The audio encoder's states and width."""
        if "audio" not in features:
            return {}
        states, width = features["audio"]["states"].shape[-2:]
        return {"audio_states": str(states), "audio_width": str(width)}

    def prepare(self, batch: FeatureBatch, grid: tuple[int, int, int]) -> OmniAvatarState:
        """State from the features `audio` and `reference_latents` and the batch's given frames.

        Raises ConditionError where a feature is missing or its frames or widths are not this clip's or condition's.
        """
        reference = self._float32(self.feature(batch, "reference_latents")["latents"])
        _, height, width = (n * p for n, p in zip(grid, self.variant.patch, strict=True))
        if tuple(reference.shape[2:]) != (1, height, width):
            raise ConditionError(f"reference latents are {list(reference.shape[2:])}; expected [1, {height}, {width}] "
                                 "for this clip. Encode one reference picture at the clip's size.")
        given = None
        if batch.given_latents is not None and batch.given_mask is not None:
            given = GivenFrames(batch.given_latents, batch.given_mask, "clean_same_t")
        return self.state(self._audio(batch, grid, len(reference)), reference, given)

    def state(self, audio: Float[Tensor, "B N A"], reference: Float[Tensor, "B C 1 H W"], given: GivenFrames | None
              ) -> OmniAvatarState:
        """State from OmniAvatar's audio vectors (last hidden state, then all), one for each of 4n+1 video frames."""
        tokens = self.audio_proj(audio)
        residuals = torch.stack([project(tokens) for project in self.audio_cond_projs], dim=1)
        channels = repeat(reference, "b c 1 h w -> b c f h w", f=tokens.shape[1])
        mask = torch.ones_like(channels[:, :1]) if given is None else 1 - self._float32(given.mask)
        return OmniAvatarState(residuals, torch.cat((channels, mask), dim=1), self.patch_embedding, given)

    def _audio(self, batch: FeatureBatch, grid: tuple[int, int, int], size: int) -> Float[Tensor, "B N A"]:
        """OmniAvatar's vector of a frame: the last state, then all states; zeros where a sample has no sound."""
        frames = video_frame_count(grid[0])
        present = batch.present.get("audio")
        if "audio" not in batch.features and present is not None and not present.any():
            return self._float32(torch.zeros(size, frames, self.audio_dim))
        states = self._float32(self.feature(batch, "audio")["states"])  # B N K D
        settings = self.settings
        if tuple(states.shape[1:]) != (frames, settings.audio_states, settings.audio_width):
            raise ConditionError(
                f"condition '{self.name}': audio features are {list(states.shape[1:])} (frames, states, width); "
                f"expected {[frames, settings.audio_states, settings.audio_width]}. "
                "Encode the sound of this clip with the audio encoder of this condition.")
        audio = torch.cat((states[:, :, -1:], states), dim=2).flatten(2)
        if batch.first_is_still is not None:
            audible = ~batch.first_is_still.to(audio.device)
            audio = torch.cat((audio[:, :1] * audible[:, None, None], audio[:, 1:]), dim=1)
        if present is not None:
            audio = torch.where(present.to(audio.device)[:, None, None], audio, 0)
        return audio

    def _float32(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.patch_embedding.weight.device, torch.float32)


def split_patch_embedding(widened: Float[Tensor, "D X 1 2 2"], base: Float[Tensor, "D C 1 2 2"]
                          ) -> tuple[Float[Tensor, "D C 1 2 2"], Float[Tensor, "D Y 1 2 2"]]:
    """A file's whole patch embedding as (delta on the base's channels, weights of the channels beside them), float32.

    The two, joined on axis 1, are the condition's `patch_embedding.weight`; its bias is likewise the difference.
    """
    channels = base.shape[1]
    return widened[:, :channels].float() - base.float(), widened[:, channels:].float()


def join_patch_embedding(own: Float[Tensor, "D X 1 2 2"], base: Float[Tensor, "D C 1 2 2"]
                         ) -> Float[Tensor, "D X 1 2 2"]:
    """The whole patch embedding of base and condition, float32; undoes `split_patch_embedding`."""
    return torch.cat((own[:, :base.shape[1]] + base.float(), own[:, base.shape[1]:]), dim=1)
