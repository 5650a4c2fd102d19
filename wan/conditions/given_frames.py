"""Clean latent frames that a clip starts from: how they enter the input, and that the loss leaves them out.

Objective and sampler use these functions alone, so that both do the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

from jaxtyping import Bool, Float
import torch
from torch import Tensor

from common.devices import sent
from common.errors import ConditionError
from common.features import FeatureBatch

Mode = Literal["clean_same_t", "t0", "noised"]
CLEAN: Mode = "clean_same_t"


@dataclass(frozen=True)
class GivenFrames:
    """Latents that are known, and how the model is shown them.

    `clean_same_t`: clean, under the timestep of the rest (OmniAvatar); `t0`: clean, their tokens at timestep 0
    (TI2V, S2V); `noised`: at the noise level of the rest (MultiTalk).
    """

    latents: Float[Tensor, "B C F H W"]
    mask: Float[Tensor, "B 1 F H W"]
    """1 = given, 0 = to be generated."""
    mode: Mode = CLEAN


def given_mode(text: str, condition: str) -> Mode:
    """`text`, the setting `given` of the condition of that name; ConditionError names the three where it is none."""
    if text not in get_args(Mode):
        raise ConditionError(f"condition '{condition}': given = '{text}' is unknown. Use clean_same_t (clean, under "
                             "the timestep of the rest: OmniAvatar), t0 (clean, at timestep 0) or noised (at the noise "
                             "level of the rest).")
    return cast(Mode, text)


def with_prefix_given(batch: FeatureBatch, latents: Float[Tensor, "B C F H W"], counts: Sequence[int],
                      is_still: Bool[Tensor, " B"]) -> FeatureBatch:
    """`batch` with the first latent frames of each sample given: `counts` says how many of its own `latents`, or 0.

    `is_still`: frame 0 is a still picture, so the sound of its moment is not heard (row 0 of the audio is zero).
    """
    frames = torch.arange(latents.shape[2], device=latents.device)
    number = sent(torch.tensor(list(counts)), latents.device)
    is_given = (frames < number[:, None])[:, None, :, None, None].expand_as(latents[:, :1])
    return replace(batch, given_latents=torch.where(is_given, latents, torch.zeros_like(latents)),
                   given_mask=is_given.to(latents.dtype), first_is_still=sent(is_still, latents.device))


def with_first_frame_given(batch: FeatureBatch, first: Float[Tensor, "B C 1 H W"], latent_frames: int,
                           is_still: Bool[Tensor, " B"]) -> FeatureBatch:
    """`batch` with the first of `latent_frames` given: the latents of a picture, or of a clip's own first frame.

    `is_still`: the frame is a still picture, so the sound of its moment is not heard (row 0 of the audio is zero).
    """
    latents = first.expand(-1, -1, latent_frames, -1, -1)
    return with_prefix_given(batch, latents, [1] * len(first), is_still)


def apply_given(noisy: Float[Tensor, "B C F H W"], given: GivenFrames | None,
                sigma: float | Float[Tensor, " B"], noise: Float[Tensor, "B C F H W"] | None = None
                ) -> Float[Tensor, "B C F H W"]:
    """`noisy` with the given frames written into it; `noisy` itself when nothing is given.

    `sigma` (0…1) is the noise level of the step. Mode `noised` needs `noise`, the draw of the whole clip: the given
    frames become (1-sigma)·latents + sigma·noise. Call it before every evaluation, and with sigma 0 on the result.
    """
    if given is None:
        return noisy
    known = given.latents.to(noisy)
    if given.mode == "noised":
        if noise is None:
            raise ConditionError("given frames of mode 'noised' need the clip's noise, and none was passed.")
        # A number is written on the device: copying it there would have the host wait for the device.
        level = sigma.to(noisy) if isinstance(sigma, Tensor) else noisy.new_full((1,), sigma)
        level = level.reshape(-1, 1, 1, 1, 1)
        known = (1 - level) * known + level * noise
    return torch.where(given.mask.to(noisy.device) > 0.5, known, noisy)


def given_timestep(timestep: Float[Tensor, " B"], given: GivenFrames | None, patch: tuple[int, int, int] = (1, 2, 2)
                   ) -> Float[Tensor, " B"] | Float[Tensor, "B L"]:
    """Timestep to call the model with: `timestep` itself, or per token with 0 on given ones for mode `t0`."""
    if given is None or given.mode != "t0":
        return timestep
    is_given = given.mask[:, 0, ::patch[0], ::patch[1], ::patch[2]].flatten(1)  # B L
    return timestep[:, None] * (1 - is_given.to(timestep))


def loss_mask(given: GivenFrames | None) -> Float[Tensor, "B 1 F H W"] | None:
    """Weight that takes given frames out of the loss (0 there, 1 elsewhere); None when nothing is given."""
    return None if given is None else 1 - given.mask
