"""What a condition is: settings, the features it reads, its weights, and a state for one forward pass."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from common.errors import ConditionError, nearest
from common.features import FeatureBatch
from wan.conditions.given_frames import GivenFrames
from wan.modules.hooks import Hooks
from wan.variants import Variant


class ConditionState(Hooks):
    """A condition prepared for one forward pass (for a whole clip when sampling)."""

    given: GivenFrames | None = None
    """Clean latent frames that this condition puts into the input, or None."""
    loss_weight: Tensor | None = None
    """`B 1 F H W` weight of the loss (face mask), or None for one everywhere."""


class Condition(nn.Module):
    """Base class. A subclass is one file with: a frozen dataclass `Settings`, `name`, `features`, `prepare`.

    Its last layer starts at zero, so that a fresh condition leaves the base's output bit-equal. Parameters are float32
    (they are trained), and may be cast for generation; a state casts to the DiT's dtype where it acts.
    """

    name: ClassVar[str]
    features: ClassVar[tuple[str, ...]]
    """Names of the FeatureSpecs read from the batch."""
    droppable: ClassVar[tuple[str, ...]] = ()
    """Those of them that have an absent form: `batch.present` may say False for any sample (dropout, guidance)."""
    trained_without: ClassVar[tuple[str, ...]] = ()
    """Features with an absent form for training's dropout alone: guidance never drops them."""
    starts_from_picture: ClassVar[bool] = False
    """The first latent frames are given: in generation the reference picture, or the end of the chunk before; in
    training the clip's own."""
    hears: ClassVar[tuple[int, int]] = (0, 0)
    """Video frames before and after a latent frame's own four whose sound changes what this condition does there."""
    Settings: ClassVar[type]
    """Frozen dataclass of the condition's own settings; every field has a default."""

    def __init__(self, settings: Any, variant: Variant) -> None:
        super().__init__()
        self.settings = settings
        self.variant = variant

    @classmethod
    def parse_settings(cls, values: Mapping[str, str]) -> Any:
        """Settings from text values (`--network_args`, file metadata); unknown keys name the nearest."""
        known = {f.name: f for f in fields(cls.Settings)}
        parsed: dict[str, Any] = {}
        for key, text in values.items():
            if key not in known:
                raise ConditionError(f"condition '{cls.name}' has no setting '{key}'{nearest(key, known)}. "
                                     f"It has: {', '.join(known) or 'none'}.")
            kind: Any = type(known[key].default)
            try:
                parsed[key] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
            except ValueError as error:
                raise ConditionError(f"condition '{cls.name}': {key} = '{text}' is no {kind.__name__}.") from error
        return cls.Settings(**parsed)

    @classmethod
    def settings_from_features(cls, features: Mapping[str, Mapping[str, Tensor]],
                               told: Mapping[str, Mapping[str, str]] | None = None) -> dict[str, str]:
        """Settings, as text, that the features themselves decide (widths of an encoder); used for a fresh condition.

        `features` are those of one item or batch, `told` the options by which they were encoded. What the user sets
        stands above them.
        """
        return {}

    def settings_text(self) -> dict[str, str]:
        """Settings as text, for metadata; `parse_settings` reads them back."""
        return {key: str(value) for key, value in asdict(self.settings).items()}

    def prepare(self, batch: FeatureBatch, grid: tuple[int, int, int]) -> ConditionState:
        """State for one forward over tokens of `grid` (F, H/2, W/2). Raises ConditionError naming a missing feature."""
        raise NotImplementedError

    def feature(self, batch: FeatureBatch, name: str) -> Mapping[str, Tensor]:
        """Tensors of a feature that this condition cannot do without; ConditionError when the batch lacks it."""
        if name not in batch.features:
            raise ConditionError(f"condition '{self.name}' needs the feature '{name}'; the batch has "
                                 f"{', '.join(batch.features) or 'none'}.")
        return batch.features[name]

    def float32(self, tensor: Tensor) -> Tensor:
        """`tensor` in float32 on the condition's device."""
        return tensor.to(next(self.parameters()).device, torch.float32)
