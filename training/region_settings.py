"""Settings of the loss weights of face and mouth; imports no torch, so that `--help` stays quick."""

from collections.abc import Iterable

from common.config import Section, flag

_ONE = 1e-6


class RegionSection(Section):
    """Regions: how much more face and mouth count in the loss."""

    face_weight: float = flag(0.0, "the loss counts 1 + this inside the face masks of the dataset (docs/training.md); "
                                   "0 needs no masks", ge=0)
    lip_weight: float = flag(0.0, "the same for the mouth masks, on top of the face", ge=0)
    region_mixture: tuple[float, float, float] | None = flag(
        None, "shares of the samples that learn from the whole picture with both weights, from the face alone, and "
              "from the mouth alone; StableAvatar's are 0.4 0.1 0.5 (default: always the whole picture)")

    def problems(self) -> Iterable[str]:
        """The mixture is three shares of one."""
        if self.region_mixture is not None and (min(self.region_mixture) < 0
                                                or abs(sum(self.region_mixture) - 1) > _ONE):
            yield (f"--region_mixture {' '.join(f'{share:g}' for share in self.region_mixture)}: expected three shares "
                   "of the samples, from 0 to 1 and together 1, such as 0.4 0.1 0.5.")

    @property
    def wanted(self) -> dict[str, str]:
        """Regions that a mask is needed for, and the flag that asks for each."""
        _, face, lip = self.region_mixture or (1.0, 0.0, 0.0)
        asked = {"face": [("--face_weight", self.face_weight), ("--region_mixture", face)],
                 "lip": [("--lip_weight", self.lip_weight), ("--region_mixture", lip)]}
        return {region: next(name for name, value in flags if value > 0) for region, flags in asked.items()
                if any(value > 0 for _, value in flags)}
