"""Weights of the loss inside face and mouth, from cached masks.

w = 1 + face_weight * face + lip_weight * lip, or for a share of the samples the face or the mouth alone; the loss is
sum(w d^2) / sum(w) (`training.loss`). Source: audio.md 5.7; the mixture is StableAvatar's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxtyping import Float
import torch
from torch import Tensor

from common.errors import ConfigError
from common.features import FeatureBatch
from common.seeding import generator
from dataset.open import Dataset
from dataset.plan import TrainingItem
from training.region_settings import RegionSection

FEATURE = "region_masks"


@dataclass(frozen=True)
class RegionWeights:
    """How much the regions count; see `RegionSection`."""

    face: float = 0.0
    lip: float = 0.0
    mixture: tuple[float, float, float] | None = None

    def of(self, features: FeatureBatch, positions: Sequence[int], *, seed: int, epoch: int
           ) -> Float[Tensor, "B 1 F H W"]:
        """Weight of each sample's places. A clip without masks has 1 everywhere.

        Which samples look at one region alone follows from (seed, epoch, position in the epoch's global order). Where
        nothing of that region is left to learn (no mask, or only in frames that are given), the sample keeps the full
        weights.
        """
        masks = {name: mask.float() for name, mask in features.features[FEATURE].items()}
        full = 1 + self.face * masks["face"] + self.lip * masks["lip"]
        if self.mixture is None:
            return full
        free = 1.0 if features.given_mask is None else 1 - features.given_mask.to(full)
        rows = []
        for index, position in enumerate(positions):
            region = chosen(self.mixture, seed, epoch, position)
            alone = full[index] if region is None else masks[region][index]
            learned = alone * (free if isinstance(free, float) else free[index])
            rows.append(torch.where(learned.sum() > 0, alone, full[index]))  # not asked on the host, which would wait
        return torch.stack(rows)


def chosen(mixture: tuple[float, float, float], seed: int, epoch: int, position: int) -> str | None:
    """The region that a sample learns from alone; None for the whole picture."""
    draw = torch.rand((), generator=generator(seed, "region", epoch, position), dtype=torch.float64).item()
    full, face, _ = mixture
    if draw < full:
        return None
    return "face" if draw < full + face else "lip"


def region_weights(settings: RegionSection) -> RegionWeights | None:
    """The weights that the settings ask for; None where the loss is to stay as it is."""
    if not settings.wanted:
        return None
    return RegionWeights(settings.face_weight, settings.lip_weight, settings.region_mixture)


def needed_masks(settings: RegionSection, dataset: Dataset) -> list[str]:
    """The feature that the settings need, if any. ConfigError where no entry of the dataset has the masks."""
    having = {region for item in dataset.items for region in item.region_masks}
    lacking = {region: name for region, name in settings.wanted.items() if region not in having}
    if lacking:
        raise ConfigError(" ".join(
            f"{name} needs masks of the {region}, and no entry of {dataset.path} names any. Set "
            f"{region}_mask_directory (or {region}_mask_path in a list) and run cache_latents.py again, or leave "
            f"{name} out."
            for region, name in lacking.items()))
    return [FEATURE] if settings.wanted else []


def masked_clips(clips: Sequence[TrainingItem]) -> Mapping[str, int]:
    """How many of the clips have a mask of each region."""
    return {region: sum(region in clip.item.region_masks for clip in clips) for region in ("face", "lip")}
