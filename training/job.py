"""What the loop trains: a Wan DiT with its network and conditions, on cached clips."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from common.features import FeatureBatch
from dataset.batches import LoadedBatch
from dataset.plan import TrainingItem
from networks.lora import LoraNetwork
from training.loop import BatchLoss
from training.step import StepBatch, draw, seed_dropouts, training_step
from training.timesteps import TimestepSettings, stratified_uniforms
from wan.conditions.base import Condition, ConditionState
from wan.conditions.given_frames import given_timestep
from wan.conditions.image_latent import model_channels, model_clip_features
from wan.modules.dit import WanDiT


@dataclass(frozen=True)
class JobSettings:
    """What a job must know beside model and data."""

    seed: int
    timesteps: TimestepSettings
    timestep_buckets: int | None = None
    norm_limit: float | None = None


class VideoJob:
    """A `training.loop.Job`: batches of cached clips, the flow-matching loss of the DiT on them."""

    def __init__(self, dit: WanDiT, network: LoraNetwork, settings: JobSettings, *,
                 epoch_batches: Callable[[int, int], Generator[LoadedBatch | None, None, None]],
                 batches_per_epoch: int, samples_per_epoch: int) -> None:
        self.dit, self.network, self.settings = dit, network, settings
        self.conditions: Mapping[str, Condition] = dict(network.conditions.items())  # type: ignore[arg-type]
        self.parameters: Sequence[nn.Parameter] = [p for p in network.parameters() if p.requires_grad]
        self.batches_per_epoch = batches_per_epoch
        self._samples_per_epoch = samples_per_epoch
        self._epoch_batches = epoch_batches
        self._epoch = 0
        self._uniforms: Tensor | None = None

    def batches(self, epoch: int, start: int) -> Generator[LoadedBatch | None, None, None]:
        """This process's batches of `epoch`; None where it has no part in a short one."""
        self._epoch = epoch
        if self.settings.timestep_buckets is not None:
            self._uniforms = stratified_uniforms(self._samples_per_epoch, self.settings.timestep_buckets,
                                                 seed=self.settings.seed, epoch=epoch)
        return self._epoch_batches(epoch, start)

    def loss(self, batch: LoadedBatch) -> BatchLoss:
        """Sum of the samples' weighted losses."""
        seed_dropouts(batch.positions, seed=self.settings.seed, epoch=self._epoch)
        draws = draw(batch.positions, batch.latents.shape[1:], seed=self.settings.seed, epoch=self._epoch,
                     uniforms=self._uniforms)
        latents = batch.latents.to(self.dit.device, torch.float32, non_blocking=True)
        features = to_device(batch.features, self.dit.device)
        if starts_from_picture(self.conditions):
            features = with_first_frame_given(features, latents, batch.items)
        states = prepare(self.conditions, features, latents)
        step = StepBatch(latents, global_count=1, given=_one([state.given for state in states.values()]),
                         loss_weight=_product([state.loss_weight for state in states.values()]))
        result = training_step(self._velocity(features, states, step), step, draws, self.settings.timesteps)
        return BatchLoss(result.loss, result.weight * result.sample_losses, tuple(one.name for one in batch.items))

    def _velocity(self, features: FeatureBatch, states: Mapping[str, ConditionState], step: StepBatch
                  ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        variant = self.dit.variant
        channels, clip = model_channels(variant, features), model_clip_features(variant, features)
        text = features.features["text"]["hidden"]

        def velocity(noisy: Tensor, sigma: Tensor, timestep: Tensor) -> Tensor:
            return self.dit(noisy, given_timestep(timestep, step.given, variant.patch), text, channels=channels,
                            clip_features=clip, conditions=states)

        return velocity

    def after_step(self) -> None:
        """Limit the norms of the LoRA pairs where the user asked for it."""
        if self.settings.norm_limit is not None:
            self.network.limit_norms(self.settings.norm_limit)


def prepare(conditions: Mapping[str, Condition], features: FeatureBatch, latents: Tensor) -> dict[str, ConditionState]:
    """States of the conditions for clips of `latents` `B C F H W`."""
    states = {}
    for name, condition in conditions.items():
        frames, height, width = (n // p for n, p in zip(latents.shape[2:], condition.variant.patch, strict=True))
        states[name] = condition.prepare(features, (frames, height, width))
    return states


def starts_from_picture(conditions: Mapping[str, Any]) -> bool:
    """Whether generation will begin each clip with a reference picture, so that training must show one too."""
    return any("reference_latents" in condition.features for condition in conditions.values())


def with_first_frame_given(features: FeatureBatch, latents: Tensor, clips: Sequence[TrainingItem]) -> FeatureBatch:
    """The batch with its clips' first latent frame given, clean.

    Where the reference picture is that very frame, it plays the still that a generation begins with, whose sound is
    not heard. A picture keeps its only frame to be learned, so nothing is given there.
    """
    if latents.shape[2] == 1:
        return features
    mask = torch.zeros_like(latents[:, :1])
    mask[:, :, 0] = 1
    is_still = torch.tensor([clip.item.reference_frame(clip.span) == clip.span.start for clip in clips])
    return replace(features, given_latents=latents, given_mask=mask, first_is_still=is_still.to(latents.device))


def to_device(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in it (in mappings, lists, tuples and dataclasses too) on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(one, device) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(one, device) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: to_device(getattr(value, f.name), device) for f in fields(value)})
    return value


def _one(given: Sequence[Any]) -> Any:
    """The given frames of the one condition that has any."""
    present = [one for one in given if one is not None]
    assert len(present) <= 1, "two conditions give frames"
    return present[0] if present else None


def _product(weights: Sequence[Tensor | None]) -> Tensor | None:
    present = [weight for weight in weights if weight is not None]
    if not present:
        return None
    product = present[0]
    for weight in present[1:]:
        product = product * weight
    return product
