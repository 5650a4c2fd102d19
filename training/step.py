"""One training step on any velocity function: noise levels, noisy input, given frames, loss. It knows no model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float
import torch
from torch import Tensor

from common.devices import sent
from common.flow import MODEL_TIME_SCALE
from common.seeding import derive_seed, generator
from training.loss import loss_weight, sample_losses, weighted_sum
from training.objective import noisy_input, velocity_target
from training.timesteps import TimestepSettings, sigmas
from wan.conditions.given_frames import GivenFrames, apply_given, loss_mask

VelocityFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x_sigma, sigma " B", timestep " B" = 1000*sigma) -> velocity of x's shape; inputs are float32. Where given frames
of mode `t0` need timesteps a token, the function makes them: it alone knows the model's patches."""


@dataclass(frozen=True)
class StepBatch:
    """What a step learns from: samples of one batch."""

    latents: Float[Tensor, "B C F H W"]
    given: GivenFrames | None = None
    """Clean frames that are put into the input and taken out of the loss."""
    global_count: int = 1
    """What the summed losses are divided by: the samples of the whole global batch, over all processes and accumulated
    batches; or 1 where the caller adds the parts up and divides by their number, however unevenly they are cut."""
    loss_weight: Float[Tensor, "B 1 F H W"] | None = None
    """Weight of the loss in space and time (face mask), or None for 1."""


@dataclass(frozen=True)
class Draws:
    """The random numbers of a step, float32, drawn on the CPU."""

    noise: Float[Tensor, "B C F H W"]
    """May have been sent to the device already."""
    uniform: Float[Tensor, " B"]
    """In [0, 1), on the CPU: the noise level's rule turns it into sigma."""


@dataclass(frozen=True)
class StepResult:
    """Loss and what it was made of."""

    loss: Float[Tensor, ""]
    """Sum of the samples' weighted losses / global_count, with its graph."""
    sample_losses: Float[Tensor, " B"]
    """Unweighted loss of each sample, detached."""
    sigma: Float[Tensor, " B"]
    weight: Float[Tensor, " B"]
    mask: Float[Tensor, "B 1 F H W"] | None = None
    """What the loss was weighted with in space and time."""


def draw(positions: Sequence[int], shape: Sequence[int], *, seed: int, epoch: int,
         uniforms: Float[Tensor, " N"] | None = None) -> Draws:
    """Noise and uniform of each sample, from (seed, purpose, epoch, position in the epoch's global order).

    They do not depend on the number of processes, the batch size, the rank or the device. `shape` is a sample's, `C F
    H W`. `uniforms`, one for every position of the epoch, replace the plain ones (`stratified_uniforms`).
    """
    noise = [torch.randn(*shape, generator=generator(seed, "noise", epoch, p)) for p in positions]
    if uniforms is None:
        u = torch.stack([torch.rand((), generator=generator(seed, "timestep", epoch, p)) for p in positions])
    else:
        u = uniforms[list(positions)]
    return Draws(torch.stack(noise), u)


def seed_dropouts(positions: Sequence[int], *, seed: int, epoch: int) -> None:
    """Seed torch's own generators for the dropouts inside the network in the step of these positions.

    Dropout draws from torch's generator, one stream for a whole batch: it is the same again after a resume, but it
    does depend on how the global batch is cut into batches (noise and noise levels do not).
    """
    torch.manual_seed(derive_seed(seed, "dropout", epoch, positions[0]))


def _mask(batch: StepBatch) -> Tensor | None:
    free, weight = loss_mask(batch.given), batch.loss_weight
    if free is None or weight is None:
        return weight if free is None else free
    return free * weight.to(free)


def training_step(velocity: VelocityFunction, batch: StepBatch, draws: Draws, settings: TimestepSettings
                  ) -> StepResult:
    """Flow-matching loss of `velocity` on `batch`.

    x_sigma = (1 - sigma) x0 + sigma noise, given frames put in; the target is noise - x0 in float32; each sample's mean
    error over what is not given is weighted by `weighting_scheme`.
    """
    device = batch.latents.device
    noise, mask = sent(draws.noise, device), _mask(batch)
    sigma = sent(sigmas(draws.uniform, settings, (batch.latents.shape[-2], batch.latents.shape[-1])), device)
    noisy = apply_given(noisy_input(batch.latents, noise, sigma), batch.given, sigma, noise)
    prediction = velocity(noisy, sigma, sigma * MODEL_TIME_SCALE)
    losses = sample_losses(prediction, velocity_target(batch.latents, noise), mask)
    weight = loss_weight(settings.weighting_scheme, sigma, shift=settings.discrete_flow_shift)
    return StepResult(weighted_sum(losses, weight) / batch.global_count, losses.detach(), sigma, weight, mask)
