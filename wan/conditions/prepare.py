"""Conditions made ready for a forward pass, and what they ask of the sampler and the loss together.

Training and generation come through here, so that both show the model the same.
"""

from collections.abc import Mapping

from torch import Tensor

from common.errors import ConditionError
from common.features import FeatureBatch
from wan.conditions.base import Condition, ConditionState
from wan.conditions.given_frames import GivenFrames


def prepare_conditions(conditions: Mapping[str, Condition], batch: FeatureBatch, latent_size: tuple[int, ...]
                       ) -> dict[str, ConditionState]:
    """State of each condition for clips of `latent_size` (latent frames, height, width)."""
    states = {}
    for name, condition in conditions.items():
        frames, height, width = (n // p for n, p in zip(latent_size, condition.variant.patch, strict=True))
        states[name] = condition.prepare(batch, (frames, height, width))
    return states


def given_by(states: Mapping[str, ConditionState]) -> GivenFrames | None:
    """The given frames of the one condition that has any; ConditionError where two have."""
    givers = [name for name, state in states.items() if state.given is not None]
    if len(givers) > 1:
        raise ConditionError(f"the conditions {' and '.join(givers)} both give clean frames. Use one of them.")
    return states[givers[0]].given if givers else None


def loss_weight_by(states: Mapping[str, ConditionState]) -> Tensor | None:
    """Product of the loss weights of all conditions; None where none has any."""
    product: Tensor | None = None
    for state in states.values():
        if state.loss_weight is not None:
            product = state.loss_weight if product is None else product * state.loss_weight
    return product
