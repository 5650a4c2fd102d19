"""Settings of the preflight; imports no torch, so that `--help` stays quick."""

from collections.abc import Iterable
from typing import Literal

from common.config import Section, flag


class PreflightSection(Section):
    """Preflight: what the run will need, told before any long work."""

    preflight: bool = flag(False, "check everything, tell memory, step time, hours and disk (docs/preflight.md), then "
                                  "train")
    dry_run: bool = flag(False, "the same and stop: nothing is trained, and nothing is written into --output_dir")
    preflight_device: Literal["cuda", "cpu"] | None = flag(
        None, "estimate for this kind of device, which need not be here (default: the one here, or cuda where there "
              "is none and the base has more than a billion parameters)")
    preflight_vram: float | None = flag(None, "GiB of the GPU to compare with, such as 24 (default: what is free on "
                                              "the one here)", gt=0)

    def problems(self) -> Iterable[str]:
        """Nothing that waits for a switch."""
        for name in ("preflight_device", "preflight_vram"):
            if getattr(self, name) is not None and not self.is_wanted:
                yield f"--{name} belongs to an estimate. Add --preflight, or --dry_run to stop behind it."

    @property
    def is_wanted(self) -> bool:
        """Whether anything is to be estimated."""
        return self.preflight or self.dry_run
