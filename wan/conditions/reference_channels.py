"""A reference picture and a mask as 17 channels beside the latents, by OmniAvatar's rule; for models without a picture.

Source: OmniAvatar `scripts/inference.py`, `models/wan_video_dit.py`: 16 channels of the picture's latent in every
latent frame, then 1 channel, 0 where frames are given. It is part of `omniavatar_add`, and stands alone for the other
audio conditions on a text-to-video model.
"""

from dataclasses import dataclass
from typing import ClassVar

from einops import repeat
from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import ConditionError
from common.features import FeatureBatch
from wan.conditions.base import Condition, ConditionState
from wan.conditions.given_frames import CLEAN, GivenFrames, Mode, given_mode
from wan.modules.hooks import Forward
from wan.variants import Variant


class ReferenceState(ConditionState):
    """The channels of one forward and the convolution that they come in by."""

    def __init__(self, channels: Float[Tensor, "B X F H W"], patch_embedding: nn.Conv3d, given: GivenFrames | None
                 ) -> None:
        self.channels = channels
        self.patch_embedding = patch_embedding
        self.given = given

    def added_patches(self, latents: Float[Tensor, "B C F H W"], forward: Forward) -> Float[Tensor, "B D F h w"]:
        """Delta on the base's channels and the contribution of reference and mask."""
        conv = self.patch_embedding
        assert conv.bias is not None
        joined = torch.cat((latents, self.channels.to(latents)), dim=1)
        return F.conv3d(joined, conv.weight.to(latents), conv.bias.to(latents), stride=conv.stride)


def picture_embedding(variant: Variant) -> nn.Conv3d:
    """Fresh (zero) patch embedding of latents, reference and mask: the difference to the base's, then its own."""
    conv = nn.Conv3d(2 * variant.latent_channels + 1, variant.dim, kernel_size=variant.patch, stride=variant.patch)
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def reference_of(condition: Condition, batch: FeatureBatch, grid: tuple[int, int, int]) -> Float[Tensor, "B C 1 H W"]:
    """The batch's reference latents; ConditionError where they are missing or not of this clip's size."""
    reference = condition.float32(condition.feature(batch, "reference_latents")["latents"])
    _, height, width = (n * p for n, p in zip(grid, condition.variant.patch, strict=True))
    if tuple(reference.shape[2:]) != (1, height, width):
        raise ConditionError(f"reference latents are {list(reference.shape[2:])}; expected [1, {height}, {width}] "
                             "for this clip. Encode one reference picture at the clip's size.")
    return reference


def present_reference(reference: Float[Tensor, "B C 1 H W"], batch: FeatureBatch) -> Float[Tensor, "B C 1 H W"]:
    """The reference, zero in the samples that lack it."""
    present = batch.present.get("reference_latents")
    if present is None:
        return reference
    return torch.where(present.to(reference.device)[:, None, None, None, None], reference, torch.zeros_like(reference))


def given_of(batch: FeatureBatch, mode: Mode) -> GivenFrames | None:
    """The batch's given frames, shown in `mode`."""
    if batch.given_latents is None or batch.given_mask is None:
        return None
    return GivenFrames(batch.given_latents, batch.given_mask, mode)


def picture_channels(reference: Float[Tensor, "B C 1 H W"], frames: int, given: GivenFrames | None
                     ) -> Float[Tensor, "B X F H W"]:
    """The reference in every latent frame, and the mask, 0 where frames are given."""
    channels = repeat(reference, "b c 1 h w -> b c f h w", f=frames)
    mask = torch.ones_like(channels[:, :1]) if given is None else 1 - given.mask.to(channels)
    return torch.cat((channels, mask), dim=1)


@dataclass(frozen=True)
class ReferenceChannelsSettings:
    """How given frames are shown; sizes are the model's."""

    given: str = CLEAN
    """How given frames enter: `clean_same_t`, clean under the timestep of the rest; `t0`, clean at timestep 0;
    `noised`, at the noise level of the rest."""


class ReferenceChannels(Condition):
    """Reference picture and given first frames for a text-to-video model. Fresh, it leaves the base bit-equal.

    A reference that training dropped (`batch.present["reference_latents"]` False) is zero channels.
    """

    name: ClassVar[str] = "reference_channels"
    features: ClassVar[tuple[str, ...]] = ("reference_latents",)
    trained_without: ClassVar[tuple[str, ...]] = ("reference_latents",)
    starts_from_picture: ClassVar[bool] = True
    Settings: ClassVar[type] = ReferenceChannelsSettings

    def __init__(self, settings: ReferenceChannelsSettings, variant: Variant) -> None:
        super().__init__(settings, variant)
        self.given = given_mode(settings.given, self.name)
        self.patch_embedding = picture_embedding(variant)

    def prepare(self, batch: FeatureBatch, grid: tuple[int, int, int]) -> ReferenceState:
        """State from `reference_latents` and the batch's given frames; ConditionError where the picture is missing."""
        given = given_of(batch, self.given)
        reference = present_reference(reference_of(self, batch, grid), batch)
        channels = picture_channels(reference, grid[0], given)
        return ReferenceState(channels, self.patch_embedding, given)
