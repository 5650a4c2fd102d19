"""The weighted squared error: a mean inside each sample, then the mean over the samples of the global batch."""

from collections.abc import Callable, Mapping
import functools
import math

from jaxtyping import Float
import torch
from torch import Tensor

from common.errors import ConfigError, UserError, nearest
from common.flow import shift_sigma

SMALLEST_SIGMA = 1e-3
"""Floor under sigma in sigma^-2: the cleanest level of the grid of 1000, whose weight is 1e6."""


def no_weight(sigma: Float[Tensor, " B"], shift: float) -> Float[Tensor, " B"]:
    """1 at every noise level."""
    return torch.ones_like(sigma)


def sigma_sqrt(sigma: Float[Tensor, " B"], shift: float) -> Float[Tensor, " B"]:
    """sigma^-2 (the name is diffusers'), sigma at least 0.001."""
    return sigma.clamp(min=SMALLEST_SIGMA) ** -2.0


def cosmap(sigma: Float[Tensor, " B"], shift: float) -> Float[Tensor, " B"]:
    """2 / (pi (1 - 2 sigma + 2 sigma^2)), Stable Diffusion 3."""
    return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))


@functools.lru_cache(maxsize=16)
def _gauss_floor_and_mean(shift: float) -> tuple[float, float]:
    grid = shift_sigma(torch.arange(1000, 0, -1, dtype=torch.float64) / 1000, shift)
    height = torch.exp(-2 * (grid - 0.5) ** 2)
    return height.min().item(), (height - height.min()).mean().item()


def diffsynth_gauss(sigma: Float[Tensor, " B"], shift: float) -> Float[Tensor, " B"]:
    """exp(-2((t - 500)/1000)^2) less its smallest value, with mean 1 over the 1000 levels shifted by `shift`.

    DiffSynth-Studio's training weight, with which OmniAvatar was trained; 0 at pure noise.
    """
    floor, mean = _gauss_floor_and_mean(shift)
    return ((torch.exp(-2 * (sigma - 0.5) ** 2) - floor) / mean).clamp(min=0)


WEIGHTS: Mapping[str, Callable[[Tensor, float], Tensor]] = {
    "none": no_weight,
    "sigma_sqrt": sigma_sqrt,
    "cosmap": cosmap,
    "diffsynth_gauss": diffsynth_gauss,
    "logit_normal": no_weight,  # these two shape the draw of the `sigma` rule, not the loss
    "mode": no_weight,
}


def loss_weight(scheme: str, sigma: Float[Tensor, " B"], *, shift: float = 1.0) -> Float[Tensor, " B"]:
    """Weight of each sample's loss for `weighting_scheme`, in float32; ConfigError when the scheme is unknown.

    `shift` (discrete_flow_shift) matters to diffsynth_gauss alone.
    """
    if scheme not in WEIGHTS:
        raise ConfigError(f"weighting_scheme '{scheme}' is unknown{nearest(scheme, WEIGHTS)}. "
                          f"It is one of {', '.join(WEIGHTS)}.")
    return WEIGHTS[scheme](sigma.float(), shift)


def sample_losses(prediction: Float[Tensor, "B *shape"], target: Float[Tensor, "B *shape"],
                  mask: Float[Tensor, "B *mask"] | None = None) -> Float[Tensor, " B"]:
    """sum(w d^2) / sum(w) of each sample, d = prediction - target in float32.

    `mask` is the weight w, broadcast over the prediction's axes (``B 1 F H W`` for ``B C F H W``); None is 1.
    Raises UserError when a sample's mask is 0 everywhere: there is nothing to learn from it. On a device that the host
    would have to wait for, such a loss is NaN instead; `empty_masks` says so to whoever reads it.
    """
    error = (prediction.float() - target.float()) ** 2
    if mask is None:
        return error.flatten(1).mean(1)
    weight = mask.to(error).expand_as(error)
    total = weight.flatten(1).sum(1)
    if total.device.type == "cpu" and (problem := empty_masks(mask)):
        raise UserError(problem)
    return (weight * error).flatten(1).sum(1) / total


def empty_masks(mask: Float[Tensor, "B *mask"] | None) -> str:
    """A sentence about the samples whose mask is 0 everywhere; empty where there are none. Reads the mask."""
    if mask is None:
        return ""
    total = mask.float().flatten(1).sum(1)
    if bool((total > 0).all()):  # asked like this, because a preflight's tensors have no numbers to be counted
        return ""
    empty = torch.nonzero(total <= 0).flatten().tolist()
    return (f"sample {empty} of the batch: its loss mask is 0 everywhere, nothing is left to learn. A still picture "
            "cannot be trained with its only frame given; a mask must not be empty.")


def weighted_sum(losses: Float[Tensor, " B"], weights: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """sum(weights * losses): this batch's part of the mean over the global batch, before the division.

    Whoever adds the parts of all processes and accumulated batches divides by the number of all their samples, so
    that every sample counts the same, however unevenly the global batch is cut.
    """
    return (weights * losses).sum()
