"""Settings that trade exactness for time: step caches, few steps, guidance in a part of the steps."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from common.config import Section, flag
from inference.choices import SkipMode

CacheKind = Literal["none", "teacache", "magcache", "first_block"]

DEFAULT_THRESHOLDS: dict[CacheKind, float] = {"teacache": 0.1, "magcache": 0.12, "first_block": 0.05}
"""TeaCache: the middle of what is usual for Wan 2.1; MagCache: its Wan port; first block: diffusers."""
LISTED_SOLVERS = ("euler", "vanilla", "lcm")
"""Solvers that can be given a list of times."""

DISTILLED_SHIFT = 5.0
"""Flow shift of the distilled LoRAs for four steps (LightX2V's `sample_shift`)."""


class SpeedChoice(Section):
    """Less work for a little less exactness."""

    step_cache: CacheKind = flag(
        "none", "use the effect of the DiT's blocks again in steps where it has hardly changed. teacache: decided by "
                "the step's time; magcache: by ratios measured beforehand; first_block: the first block runs, and its "
                "change decides. Pays from about 20 steps; first and last step are computed", group="Speed")
    step_cache_threshold: float | None = flag(
        None, "above 0; more is faster and worse (default: teacache 0.1, magcache 0.12, first_block 0.05)",
        group="Speed", gt=0)
    teacache_threshold: float = flag(
        0.0, "short for --step_cache teacache --step_cache_threshold: 0 is off, 0.05 to 0.15 are usual", group="Speed",
        ge=0, alias="tea_cache_l1_thresh")
    step_cache_skips: int = flag(2, "with magcache: most steps in a row that are skipped", group="Speed", ge=1)
    step_cache_retention: float = flag(0.2, "with magcache: share of the steps, from the first on, that are computed",
                                       group="Speed", ge=0, le=1)
    step_cache_ratios: Path | None = flag(
        None, "with magcache: file of --step_cache_calibrate (default: the published ratios of Wan 2.1 t2v-1.3B, "
              "t2v-14B and i2v-14B)", group="Speed")
    step_cache_calibrate: Path | None = flag(
        None, "measure this model's ratios for magcache in a run without a cache and write them there, as JSON",
        group="Speed")
    denoising_steps: list[float] = flag(
        [], "few steps of a distilled LoRA: the times, falling, such as 1000 750 500 250, before --flow_shift (then 5 "
            "by default); euler steps, or --sample_solver lcm, and --guidance_scale 1 by default", group="Speed")
    cfg_skip_mode: SkipMode = flag(
        "none", "steps without guidance, one pass each: the first (early) or last ones (late), those in the middle, "
                "both ends (early_late), or evenly spread (alternate). --cfg_apply_ratio says how many have it",
        group="Speed")
    cfg_apply_ratio: float | None = flag(None, "with --cfg_skip_mode: share of the steps that are guided",
                                         group="Speed", ge=0, le=1)

    @property
    def cache_kind(self) -> CacheKind:
        """The step cache that is asked for, by either spelling."""
        return "teacache" if self.teacache_threshold else self.step_cache

    @property
    def cache_threshold(self) -> float:
        """Its threshold; 0 where there is no cache."""
        if self.cache_kind == "none":
            return 0.0
        return self.teacache_threshold or self.step_cache_threshold or DEFAULT_THRESHOLDS[self.cache_kind]

    @property
    def cfg_skip(self) -> tuple[SkipMode, float] | None:
        """Which steps have no guidance, by musubi-tuner's rule."""
        return None if self.cfg_skip_mode == "none" or self.cfg_apply_ratio is None else (
            self.cfg_skip_mode, self.cfg_apply_ratio)

    def speed_problems(self) -> Iterable[str]:
        """Flags that contradict each other, or that mean nothing alone."""
        if self.teacache_threshold and self.step_cache not in ("none", "teacache"):
            yield (f"--teacache_threshold asks for TeaCache and --step_cache for {self.step_cache}. Give one; the "
                   "threshold of every kind is --step_cache_threshold.")
        if self.step_cache_threshold is not None and self.teacache_threshold:
            yield "--teacache_threshold and --step_cache_threshold say the same. Give one."
        elif self.step_cache_threshold is not None and self.step_cache == "none":
            yield ("--step_cache_threshold: no cache is asked for. Add --step_cache teacache, magcache or first_block, "
                   "or leave it out.")
        if self.step_cache_ratios is not None and self.cache_kind != "magcache":
            yield "--step_cache_ratios belongs to --step_cache magcache. Add that, or leave it out."
        if self.step_cache_calibrate is not None and self.cache_kind != "none":
            yield (f"--step_cache_calibrate measures a run without a cache, and {self.cache_kind} is asked for. "
                   "Measure first, then give the file to --step_cache_ratios.")
        if (self.cfg_skip_mode == "none") != (self.cfg_apply_ratio is None):
            yield ("--cfg_skip_mode and --cfg_apply_ratio belong together: which steps have no guidance, and the share "
                   "that has. Give both, or neither.")
        yield from self._denoising_problems()

    def _denoising_problems(self) -> Iterable[str]:
        times = self.denoising_steps
        falls = all(first > second for first, second in zip(times, times[1:], strict=False))
        if times and not (falls and times[0] <= 1000 and times[-1] > 0):
            yield (f"--denoising_steps {' '.join(f'{time:g}' for time in times)}: expected falling times from at most "
                   "1000 to above 0. Distilled LoRAs for four steps take 1000 750 500 250.")


def distilled_defaults(choice: SpeedChoice) -> dict[str, Any]:
    """Defaults that `--denoising_steps` brings: as many steps, the shift of the distillation, one pass a step."""
    if not choice.denoising_steps:
        return {}
    return {"infer_steps": len(choice.denoising_steps), "flow_shift": DISTILLED_SHIFT, "guidance_scale": 1.0}
