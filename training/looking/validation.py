"""What the network does on clips that it never trains on: their loss, and how much of it hangs on the right sound.

All random numbers are fixed: noise follows from (validation seed, clip, noise level), the levels are given. So two
measurements differ by the weights alone, whatever the number of processes, and each clip is measured in forward
passes of its own, so that a pass costs no more memory than a training step does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
import math
import time
from typing import Any, ClassVar

import torch
from torch import nn

from common.errors import UserError
from common.fingerprint import text_hash
from common.logs import get_logger
from common.seeding import generator
from dataset.plan import TrainingItem
from training.callbacks import AudioGap, Callback, LevelFigures, Run, StepReport, ValidationReport
from training.clips import read_one
from training.job import VideoJob
from training.looking.shifted_sound import (
    SHIFT_FRAMES,
    SOUND,
    compared_frames,
    why_not_compared,
    with_sound_moved,
    without_sound,
)
from training.loss import empty_masks
from training.signals import Interrupted
from training.step import Draws, StepResult
from training.timesteps import TimestepSettings
from wan.conditions.base import Condition

log = get_logger(__name__)

TIMES_A_RUN, SMALLEST_DISTANCE = 10, 100
"""Where nobody says how often: this many times a run, and no more often than every 100 steps."""
_LEVELS = TimestepSettings(timestep_sampling="uniform")
"""The rule that turns a uniform into the very same noise level."""


@dataclass(frozen=True)
class ValidationSettings:
    """Which random numbers, and when."""

    seed: int
    sigmas: tuple[float, ...]
    """Noise levels, above 0 and up to 1 (pure noise)."""
    every: int
    """Optimiser steps between two measurements; the start and the end of a run are measured too."""


@dataclass(frozen=True)
class ClipFigures:
    """Unweighted losses of one clip, one for each noise level."""

    name: str
    sigmas: tuple[float, ...]
    loss: tuple[float, ...]
    """Over all frames that are not given."""
    by_sound: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Over the compared frames: `right`, `late`, `early` and, where the condition can go without, `silent`."""
    reason: str = ""
    """Why `by_sound` is empty; empty too where nothing hears."""


def default_distance(total_steps: int) -> int:
    """Steps between two measurements where nobody says."""
    return max(SMALLEST_DISTANCE, total_steps // TIMES_A_RUN)


def chosen(clips: Sequence[TrainingItem], seed: int, limit: int | None) -> list[TrainingItem]:
    """At most `limit` of the clips, by a hash of each one's content, span and `seed`: the same in any order of files.

    Clips that are added elsewhere take at most the place of some, and move no other.
    """
    return sorted(clips, key=lambda clip: text_hash(f"{seed}/{_identity(clip)}"))[:limit]


def _identity(clip: TrainingItem) -> str:
    span = clip.span
    return f"{clip.item.content}/{span.start}+{span.frames}/{span.width}x{span.height}"


def measure_clip(job: VideoJob, clip: TrainingItem, settings: ValidationSettings) -> ClipFigures:
    """The losses of one clip as the network is now; call it inside `measuring`."""
    latents, features = job.shown(read_one(clip))
    hearing = [condition for condition in job.conditions.values() if SOUND in condition.features]
    reason = why_not_compared(clip) if hearing else ""
    variants, frames = {"right": features}, None
    if hearing and not reason:
        spec = next(entry.spec for entry in clip.entries if entry.spec.name == SOUND)
        variants["late"] = with_sound_moved(features, spec, SHIFT_FRAMES)
        variants["early"] = with_sound_moved(features, spec, -SHIFT_FRAMES)
        if all(SOUND in condition.droppable for condition in hearing):
            variants["silent"] = without_sound(features, len(latents)).to(latents.device)
        frames = torch.zeros_like(latents[:, :1])
        compared = compared_frames(clip.frames)
        frames[:, :, compared.start:compared.stop] = 1
    loss: list[float] = []
    by_sound: dict[str, list[float]] = {name: [] for name in variants} if frames is not None else {}
    for index, sigma in enumerate(settings.sigmas):
        source = generator(settings.seed, f"validation noise {_identity(clip)}", index)
        draws = Draws(torch.randn(latents.shape, generator=source), torch.full((len(latents),), sigma))
        whole, *part = job.steps(latents, features, draws, _LEVELS, (None,) if frames is None else (None, frames))
        loss.append(figure_of(whole))
        for name in by_sound:
            (result,) = part if name == "right" else job.steps(latents, variants[name], draws, _LEVELS, (frames,))
            by_sound[name].append(figure_of(result))
    return ClipFigures(clip.name, settings.sigmas, tuple(loss),
                       {name: tuple(values) for name, values in by_sound.items()}, reason)


def figure_of(result: StepResult) -> float:
    """The loss of a clip; UserError where nothing of it is measured, which is NaN on a GPU (`sample_losses`)."""
    figure = result.sample_losses.item()
    if math.isnan(figure) and (problem := empty_masks(result.mask)):
        raise UserError(problem)
    return figure


def passes_of(clips: Sequence[TrainingItem], conditions: Sequence[Condition], levels: int) -> list[int]:
    """Forward passes that a measurement makes of each clip."""
    hears = any(SOUND in condition.features for condition in conditions)
    silent = all(SOUND in condition.droppable for condition in conditions if SOUND in condition.features)
    return [levels * ((4 if silent else 3) if hears and not why_not_compared(clip) else 1) for clip in clips]


@contextmanager
def measuring(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode without gradients; the network's modes and torch's random state are afterwards what they were."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def summary(figures: Sequence[ClipFigures], *, step: int, epoch: int, seconds: float, basis: str = ""
            ) -> ValidationReport:
    """Means over clips and noise levels, each clip and level counting the same."""
    compared = [one for one in figures if one.by_sound]
    audio = None
    if compared:
        names = [name for name in compared[0].by_sound if all(name in one.by_sound for one in compared)]
        mean = {name: _mean([one.by_sound[name] for one in compared]) for name in names}
        audio = AudioGap(right=mean["right"], late=mean["late"], early=mean["early"], silent=mean.get("silent"),
                         clips=len(compared), shift_frames=SHIFT_FRAMES)
    reasons = [one.reason for one in figures if one.reason]
    note = ", ".join(f"{reasons.count(reason)} {_clips(reasons.count(reason))} {reason}"
                     for reason in dict.fromkeys(reasons))
    return ValidationReport(step=step, epoch=epoch, loss=_mean([one.loss for one in figures]), clips=len(figures),
                            audio=audio, note=note, seconds=seconds, by_sigma=_by_level(figures, compared),
                            basis=basis)


def _by_level(figures: Sequence[ClipFigures], compared: Sequence[ClipFigures]) -> tuple[LevelFigures, ...]:
    """Means over the clips at each noise level."""
    levels = []
    for index, sigma in enumerate(figures[0].sigmas):
        gap = None
        if compared:
            right, late, early = (_mean([one.by_sound[name][index:index + 1] for one in compared])
                                  for name in ("right", "late", "early"))
            gap = (late + early) / 2 - right
        levels.append(LevelFigures(sigma, _mean([one.loss[index:index + 1] for one in figures]), gap))
    return tuple(levels)


def _mean(rows: Sequence[Sequence[float]]) -> float:
    values = [value for row in rows for value in row]
    return sum(values) / len(values)


def _clips(count: int) -> str:
    return "clip" if count == 1 else "clips"


class Validation(Callback):
    """Measures the held-out clips before the first step, every so many steps, and after the last one.

    The clips are dealt out to the processes and the figures gathered, so that every process has the report. A
    measurement that fails is told and counted in `failures`; the run goes on.
    """

    state_name: ClassVar[str] = "validation"

    def __init__(self, job: VideoJob, clips: Sequence[TrainingItem], settings: ValidationSettings, *,
                 as_saved: Callable[[], AbstractContextManager[Any]] = nullcontext) -> None:
        """`as_saved` gives the context in which the network has the weights that a checkpoint would hold."""
        assert clips, "nothing to measure"
        self.clips, self.settings = list(clips), settings
        self.failures = 0
        self._job, self._as_saved = job, as_saved
        self._measured: int | None = None
        self._basis = text_hash(repr((settings.seed, settings.sigmas, [_identity(clip) for clip in self.clips])))

    @property
    def passes(self) -> int:
        """Forward passes of one measurement, over all processes."""
        return sum(passes_of(self.clips, list(self._job.conditions.values()), len(self.settings.sigmas)))

    def remembered(self) -> dict[str, Any]:
        """The step that was measured last, and how many measurements failed."""
        return {"measured": self._measured, "failures": self.failures}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Take both up."""
        self._measured, self.failures = values["measured"], values["failures"]

    def on_start(self, run: Run) -> None:
        """Measure what the run starts from; a resumed one only where its step was due and had not been measured."""
        log.info("validation: %d held-out %s at %d noise levels, %d forward passes; at the start, every %d steps and "
                 "at the end", len(self.clips), _clips(len(self.clips)), len(self.settings.sigmas), self.passes,
                 self.settings.every)
        if not run.is_resumed or (self._is_due(run) and self._measured != run.state.step):
            self._measure(run)

    def on_step(self, run: Run, report: StepReport) -> None:
        """Measure every `every` steps, and after the last one."""
        if self._is_due(run):
            self._measure(run)

    def _is_due(self, run: Run) -> bool:
        return run.state.step % self.settings.every == 0 or run.is_ending

    def _own_share(self, run: Run) -> tuple[dict[int, ClipFigures], str, int | None]:
        """(figures by clip of this process's part, what went wrong there, the signal that ended it)"""
        own: dict[int, ClipFigures] = {}
        processes, name = run.processes, "before the first clip"
        try:
            with measuring(self._job.network, processes.device), self._as_saved():
                for number in range(processes.rank, len(self.clips), processes.count):
                    name = self.clips[number].name
                    # Innermost, so that a signal never falls into the putting back of weights and modes.
                    with run.interruptible():
                        own[number] = measure_clip(self._job, self.clips[number], self.settings)
        except Interrupted as stop:
            return own, "", stop.number
        except Exception as error:  # noqa: BLE001 - a look that fails may not end a run that learns
            log.debug("measurement of held-out clips", exc_info=True)
            return own, f"{name}: {type(error).__name__}: {error}", None
        return own, "", None

    def _measure(self, run: Run) -> None:
        started = time.perf_counter()
        processes = run.processes
        # Every process hears of the others' errors and signals, so that all of them go on alike.
        parts = processes.gather(self._own_share(run))
        run.stop_together(number for _, _, number in parts)
        if errors := [text for _, text, _ in parts if text]:
            self.failures += 1
            if processes.is_main:
                log.warning("step %d: the held-out clips could not be measured (%s); training goes on without this "
                            "measurement. Failed so far: %d", run.state.step, "; ".join(errors), self.failures)
            return
        everywhere = {number: figures for figures_of in parts for number, figures in figures_of[0].items()}
        self._measured = run.state.step
        run.validated(summary([everywhere[number] for number in range(len(self.clips))], step=run.state.step,
                              epoch=run.state.epoch, seconds=time.perf_counter() - started, basis=self._basis))
