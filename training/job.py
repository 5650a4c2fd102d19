"""What the loop trains: a Wan DiT with its network and conditions, on cached clips."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeVar

from jaxtyping import Float
import torch
from torch import Tensor, nn

from common.devices import sent
from common.features import FeatureBatch
from dataset.batches import LoadedBatch
from dataset.plan import TrainingItem
from networks.ema import Ema
from networks.network import Network
from training.corruption import corrupted_prefix
from training.drawn import Place, dropped, prefix_counts, with_dropouts, with_prefix
from training.loss import empty_masks
from training.passes import BatchLoss
from training.regions import RegionWeights
from training.showing import Showing
from training.step import Draws, StepBatch, StepResult, VelocityFunction, draw, seed_dropouts, training_step
from training.timesteps import TimestepSettings, sigmas, stratified_uniforms
from wan.conditions.base import Condition, ConditionState
from wan.conditions.given_frames import given_timestep
from wan.conditions.image_latent import model_channels, model_clip_features
from wan.conditions.prepare import given_by, loss_weight_by, prepare_conditions
from wan.modules.dit import WanDiT


@dataclass(frozen=True)
class JobSettings:
    """What a job must know beside model and data."""

    seed: int
    timesteps: TimestepSettings
    timestep_buckets: int | None = None
    norm_limit: float | None = None
    showing: Showing = Showing()
    regions: RegionWeights | None = None


@dataclass(frozen=True)
class JobPhase:
    """What is learnt from a step on: which batches, how they are shown, at which noise."""

    start_step: int
    """Optimiser steps that are done when it begins."""
    showing: Showing
    timesteps: TimestepSettings
    epoch_batches: Callable[[int, int], Generator[LoadedBatch | None, None, None]]
    batches_per_epoch: int
    samples_in: Callable[[int], int]
    """Samples of an epoch (by its number), over all processes."""


class HasStart(Protocol):
    """Something that holds from a step on."""

    @property
    def start_step(self) -> int:
        """Optimiser steps that are done when it begins."""


Started = TypeVar("Started", bound=HasStart)


def phase_at(phases: Sequence[Started], step: int) -> Started:
    """The one of `phases` (the first from step 0, ascending) that holds once `step` optimiser steps are done."""
    return [one for one in phases if one.start_step <= step][-1]


@dataclass(frozen=True)
class JobEpoch:
    """An epoch: what its draws follow from, beside the seed and a sample's place in it."""

    number: int
    phase: JobPhase
    uniforms: Tensor | None
    """One for every sample of it, where noise levels are stratified."""


@dataclass(frozen=True)
class ReadyBatch:
    """A batch as the model is shown it: all is drawn, and its tensors are on the device or on their way there."""

    items: tuple[TrainingItem, ...]
    positions: tuple[int, ...]
    latents: Float[Tensor, "B C F H W"]
    features: FeatureBatch
    draws: Draws
    weight: Float[Tensor, "B 1 F H W"] | None
    """Weight of the loss by regions."""
    timesteps: TimestepSettings
    epoch: int


class VideoJob:
    """A `training.passes.Job`: batches of cached clips, the flow-matching loss of the DiT on them."""

    def __init__(self, dit: WanDiT, network: Network, settings: JobSettings, *,
                 epoch_batches: Callable[[int, int], Generator[LoadedBatch | None, None, None]],
                 batches_per_epoch: int, samples_per_epoch: int, phases: Sequence[JobPhase] = (), ema: Ema | None = None
                 ) -> None:
        """`phases` take the place of the batches, and of what `settings` say of showing and noise levels."""
        self.ema = ema
        self.dit, self.network, self.settings = dit, network, settings
        self.conditions: Mapping[str, Condition] = dict(network.conditions.items())  # type: ignore[arg-type]
        self.parameters: Sequence[nn.Parameter] = [p for p in network.parameters() if p.requires_grad]
        self._phases = tuple(phases) or (JobPhase(0, settings.showing, settings.timesteps, epoch_batches,
                                                  batches_per_epoch, lambda epoch: samples_per_epoch),)
        self.batches_per_epoch = self._phases[0].batches_per_epoch

    def epoch_length(self, step: int) -> int:
        """Batches of each process in an epoch that begins after `step` steps, and belongs to the phase of then."""
        return phase_at(self._phases, step).batches_per_epoch

    def epoch(self, number: int, step: int) -> JobEpoch:
        """Epoch `number` (from 1), which begins after `step` optimiser steps."""
        phase, buckets = phase_at(self._phases, step), self.settings.timestep_buckets
        uniforms = None if buckets is None else stratified_uniforms(phase.samples_in(number), buckets,
                                                                    seed=self.settings.seed, epoch=number)
        return JobEpoch(number, phase, uniforms)

    def batches(self, epoch: int, step: int, start: int) -> Generator[ReadyBatch | None, None, None]:
        """This process's batches of `epoch`, ready for `loss`; None where it has no part in a short one."""
        own = self.epoch(epoch, step)
        with closing(own.phase.epoch_batches(epoch, start)) as batches:
            for batch in batches:
                yield None if batch is None else self.ready(batch, own)

    def ready(self, batch: LoadedBatch, epoch: JobEpoch) -> ReadyBatch:
        """The host's part of `loss`: all draws but those of dropouts inside the network, and the way to the device.

        torch's own generators are left alone, and the host waits for nothing.
        """
        seed, number = self.settings.seed, epoch.number
        draws = draw(batch.positions, batch.latents.shape[1:], seed=seed, epoch=number, uniforms=epoch.uniforms)
        latents, features = self.shown_in_training(batch, epoch)
        regions = self.settings.regions
        weight = None if regions is None else regions.of(features, batch.positions, seed=seed, epoch=number)
        draws = replace(draws, noise=sent(draws.noise, latents.device))
        return ReadyBatch(batch.items, batch.positions, latents, features, draws, weight, epoch.phase.timesteps, number)

    def loss(self, batch: ReadyBatch) -> BatchLoss:
        """Sum of the samples' weighted losses."""
        seed_dropouts(batch.positions, seed=self.settings.seed, epoch=batch.epoch)
        latents, draws = batch.latents, batch.draws
        (result,) = self.steps(latents, batch.features, draws, batch.timesteps, (batch.weight,))
        # Computed again from the draws, on the CPU: the step's own levels are on the device, and reading waits for it.
        drawn = sigmas(draws.uniform, batch.timesteps, (latents.shape[-2], latents.shape[-1]))
        return BatchLoss(result.loss, result.weight * result.sample_losses, tuple(one.name for one in batch.items),
                         tuple(drawn.tolist()), hint=partial(empty_masks, result.mask))

    def shown(self, batch: LoadedBatch) -> tuple[Float[Tensor, "B C F H W"], FeatureBatch]:
        """Latents (float32) and features of a batch on the model's device, as a generation begins: nothing is drawn."""
        latents, features = self._loaded(batch)
        if self.starts_from_picture:
            features = with_first_frame_shown(features, latents, batch.items)
        return latents, features

    def shown_in_training(self, batch: LoadedBatch, epoch: JobEpoch
                          ) -> tuple[Float[Tensor, "B C F H W"], FeatureBatch]:
        """The same with the given frames and dropouts that are drawn for each sample (`Showing`)."""
        showing, place = epoch.phase.showing, Place(batch.positions, self.settings.seed, epoch.number)
        latents, features = self._loaded(batch)
        if self.starts_from_picture:
            counts = prefix_counts(showing, place, latents.shape[2])
            given = corrupted_prefix(latents, counts, place, showing.prefix_corruption)
            features = with_prefix(features, given, batch.items, counts)
        return latents, with_dropouts(features, dropped(showing, place)).to(latents.device)

    @property
    def starts_from_picture(self) -> bool:
        """Whether a condition has the first frames given."""
        return any(condition.starts_from_picture for condition in self.conditions.values())

    def _loaded(self, batch: LoadedBatch) -> tuple[Float[Tensor, "B C F H W"], FeatureBatch]:
        device = self.dit.device
        return sent(batch.latents, device).to(torch.float32), batch.features.to(device)

    def steps(self, latents: Float[Tensor, "B C F H W"], features: FeatureBatch, draws: Draws,
              timesteps: TimestepSettings, weights: Sequence[Float[Tensor, "B 1 F H W"] | None] = (None,)
              ) -> list[StepResult]:
        """`training_step` on the model, once for each of `weights` (of the loss, beside the conditions' own).

        All of them look at the prediction of one forward pass.
        """
        states = prepare_conditions(self.conditions, features, tuple(latents.shape[2:]))
        step = StepBatch(latents, global_count=1, given=given_by(states), loss_weight=loss_weight_by(states))
        velocity = _computed_once(self._velocity(features, states, step))
        return [training_step(velocity, replace(step, loss_weight=_product(step.loss_weight, weight)), draws, timesteps)
                for weight in weights]

    def _velocity(self, features: FeatureBatch, states: Mapping[str, ConditionState], step: StepBatch
                  ) -> VelocityFunction:
        variant = self.dit.variant
        channels, clip = model_channels(variant, features), model_clip_features(variant, features)
        text = features.features["text"]["hidden"]

        def velocity(noisy: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
            return self.dit(noisy, given_timestep(timestep, step.given, variant.patch), text, channels=channels,
                            clip_features=clip, conditions=states)

        return velocity

    @property
    def works_after_step(self) -> bool:
        """Whether `after_step` has anything to do."""
        return self.settings.norm_limit is not None or self.ema is not None

    def after_step(self) -> None:
        """Limit the norms of the LoRA pairs, then take the weights into their average, where the user asked for it."""
        if self.settings.norm_limit is not None:
            self.network.limit_norms(self.settings.norm_limit)
        if self.ema is not None:
            self.ema.update()


def _computed_once(velocity: VelocityFunction) -> VelocityFunction:
    """`velocity` for one step: whoever asks again, with the same input, gets the prediction that is there."""
    known: list[Tensor] = []

    def remembered(noisy: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
        if not known:
            known.append(velocity(noisy, sigma, timestep))
        return known[0]

    return remembered


def _product(own: Tensor | None, more: Tensor | None) -> Tensor | None:
    if own is None or more is None:
        return more if own is None else own
    return own * more


def with_first_frame_shown(features: FeatureBatch, latents: Tensor, clips: Sequence[TrainingItem]) -> FeatureBatch:
    """The batch with its clips' first latent frame given, clean, as a generation from a picture begins."""
    return with_prefix(features, latents, clips, [1] * len(clips))
