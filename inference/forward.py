"""One clip's velocity: the DiT with everything that its passes are conditioned on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from jaxtyping import Float
import torch
from torch import Tensor

from common.features import FeatureBatch
from inference.guidance import Guidance, Pass
from inference.inputs import Prepared
from inference.step_cache import StepCache, run_with_cache
from wan.conditions.base import Condition, ConditionState
from wan.conditions.given_frames import GivenFrames, apply_given, given_timestep
from wan.conditions.image_latent import model_channels, model_clip_features
from wan.conditions.prepare import given_by, prepare_conditions
from wan.modules.constants import Constants
from wan.modules.dit import WanDiT


@dataclass(frozen=True)
class _PassInputs:
    text: list[Tensor]
    states: dict[str, ConditionState]
    constants: Constants = field(default_factory=Constants)


class ClipVelocity:
    """velocity(x, sigma, timestep, pass) of one clip; what does not change from step to step is made once.

    `given` are the frames that a condition keeps clean, or None. With `cache` steps may skip the DiT's blocks.
    """

    def __init__(self, dit: WanDiT, conditions: Mapping[str, Condition], prepared: Prepared, guidance: Guidance,
                 noise: Float[Tensor, "1 16 F H W"], cache: StepCache | None = None) -> None:
        self.dit = dit
        self.cache = cache
        self.noise = noise
        variant = dit.variant
        batch = prepared.batch.to(noise.device)
        self.channels = model_channels(variant, batch)
        self.clip_features = model_clip_features(variant, batch)
        self.passes: dict[str, _PassInputs] = {}
        for one in guidance.all_passes:
            seen = without(batch, one)
            text = (prepared.negative_text if one.negative_text else prepared.text).to(noise.device)
            states = prepare_conditions(conditions, seen, tuple(noise.shape[2:]))
            self.passes[one.name] = _PassInputs([text], states)
        # Every pass is given the same frames: guidance drops features, never what the clip starts from. A model that
        # no condition tells how (image-to-video) is shown them at the step's noise, as MultiTalk's sampler does.
        self.given = given_by(self.passes[guidance.all_passes[0].name].states)
        if self.given is None and batch.given_latents is not None and batch.given_mask is not None:
            self.given = GivenFrames(batch.given_latents, batch.given_mask, "noised")

    def __call__(self, x: Float[Tensor, "1 16 F H W"], sigma: float, timestep: float, one: Pass
                 ) -> Float[Tensor, "1 16 F H W"]:
        inputs = self.passes[one.name]
        time = torch.full((len(x),), timestep, device=x.device, dtype=torch.float32)
        times = given_timestep(time, self.given, self.dit.variant.patch)
        return run_with_cache(self.dit, self.cache, one.name, sigma, x, times, inputs.text, channels=self.channels,
                              clip_features=self.clip_features, conditions=inputs.states, constants=inputs.constants)

    def write_given(self, sample: Tensor, sigma: float) -> Tensor:
        """The sample with the given frames as they stand at `sigma`."""
        return apply_given(sample, self.given, sigma, self.noise)


def without(batch: FeatureBatch, one: Pass) -> FeatureBatch:
    """The batch as `one` sees it: features that it lacks are marked absent."""
    absent = {name: torch.zeros(1, dtype=torch.bool) for name in one.without if name in batch.features}
    return replace(batch, present={**batch.present, **absent}) if absent else batch
