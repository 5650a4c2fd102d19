"""The phases of a run: their clips, what is told of them, and the batches that come of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
import itertools
import json
import math
from typing import TYPE_CHECKING, Any

import torch

from common.errors import ConfigError, UserError, raise_all
from common.fingerprint import text_hash
from common.logs import get_logger
from dataset.open import Dataset
from dataset.plan import TrainingItem
from dataset.report import table
from training.budget import tokens, within_budget
from training.callbacks import Callback, Run, StepReport
from training.clips import EpochBatches, digest, sizes_of
from training.job import JobPhase, phase_at
from training.phase_table import NOISE_KEYS, PhaseEntry
from training.showing import Showing, resolve
from training.timesteps import TimestepSettings, check_settings, unread_settings

if TYPE_CHECKING:
    from training.preflight import Plan

log = get_logger(__name__)

_SIZES = 3
"""Sizes of an entry that are told in the table."""
_HEADINGS = ("phase", "steps", "largest batch of a process", "entries: share, sizes", "differs")


@dataclass(frozen=True)
class Phase:
    """What a run is trained on from a step on, every default decided."""

    number: int
    """Its place in the file, from 1."""
    start_step: int
    """Optimiser steps that are done when it begins."""
    end_step: int
    """The last step of it."""
    names: Mapping[int, str]
    """Its entries of the dataset, by `section_index`."""
    shares: Mapping[int, float] | None
    """How likely a batch is to come from each; None: an epoch shows every clip once."""
    clips: Sequence[TrainingItem]
    showing: Showing
    timesteps: TimestepSettings
    overrides: Mapping[str, Any]
    """What it sets against the run's own settings."""

    def batches(self, run: EpochBatches) -> EpochBatches:
        """Its batches, with seed, processes and workers of `run`."""
        return replace(run, clips=self.clips, shares=self.shares, min_frames=self.showing.min_frames)

    def facts(self) -> dict[str, Any]:
        """For the metadata of the trained file."""
        names = [*self.names.values()]
        return {"start_step": self.start_step, **self.overrides, "datasets": names if self.shares is None else {
            self.names[section]: share for section, share in self.shares.items()}}

    def digest(self) -> str:
        """Hash of what is learnt in it, whenever it begins."""
        return text_hash(f"{digest(self.clips)} {self.shares} {self.showing} {self.timesteps}")


def plan_phases(entries: Sequence[PhaseEntry], plan: "Plan", whole: Sequence[TrainingItem],
                timesteps: TimestepSettings) -> tuple[Phase, ...]:
    """The phases that `entries` describe, in a run of `plan` that has `timesteps` where no phase says otherwise.

    `whole` are all clips of the dataset, not yet brought below --max_tokens. Raises ConfigError with everything that
    does not fit: entries without clips, settings that the trained conditions have no use for.
    """
    if not entries:
        return ()
    problems: list[str] = []
    phases: list[Phase] = []
    for entry in entries:
        try:
            phases.append(_phase(entry, plan, whole, timesteps))
        except UserError as error:
            problems.append(f"{entry.where}: phase {entry.number}: {error}")
    raise_all(problems, ConfigError, "--phases")
    _warn(phases, plan.dataset)
    return tuple(phases)


def _phase(entry: PhaseEntry, plan: "Plan", whole: Sequence[TrainingItem], timesteps: TimestepSettings) -> Phase:
    names = {section.index: section.name for section in plan.dataset.config.sections
             if section.name in entry.datasets or not entry.datasets}
    showing = resolve(entry.showing, {name: type(condition) for name, condition in plan.conditions.items()})
    own: dict[str, Any] = {key: float(value) for key, value in entry.overrides.items() if key in NOISE_KEYS}
    noise = replace(timesteps, **own)
    check_settings(noise)
    if unread := [name for name in unread_settings(noise) if name in own]:
        raise ConfigError(f"{', '.join(unread)} has no effect with --timestep_sampling {noise.timestep_sampling}. "
                          "Leave it out, or choose a rule that reads it, such as shift.")
    clips = [clip for clip in plan.clips if clip.item.section_index in names]
    _refuse_empty(names, clips, plan, is_named=bool(entry.datasets))
    if "max_tokens" in entry.overrides and showing.max_tokens is not None:
        trained = {clip.item.content for clip in clips}
        clips = [clip for clip in whole if clip.item.section_index in names and clip.item.content in trained]
        clips = within_budget(clips, showing.max_tokens, plan.variant.patch, needs_end=plan.task.family == "flf2v")
    shares = {section: share for section, name in names.items() if (share := entry.datasets.get(name)) is not None}
    # With all of the share, an entry is shown whole in every epoch, as without a share.
    return Phase(entry.number, entry.start_step, entry.end_step, names, shares if len(shares) > 1 else None, clips,
                 showing, noise, entry.overrides)


def _refuse_empty(names: Mapping[int, str], clips: Sequence[TrainingItem], plan: "Plan", *, is_named: bool) -> None:
    counts = Counter(clip.item.section_index for clip in clips)
    empty = {section: name for section, name in names.items() if not counts[section]}
    if empty and (is_named or not clips):
        held_out = sum(clip.item.section_index in empty for clip in plan.held_out)
        more = f" ({held_out} held out)" if held_out else ""
        raise ConfigError(f"datasets: no clips to train on in {', '.join(empty.values())}{more}. Leave it out of "
                          "this phase, or add clips.")


def _warn(phases: Sequence[Phase], dataset: Dataset) -> None:
    used = {section for phase in phases for section in phase.names}
    for section in dataset.config.sections:
        if section.index not in used:
            log.warning("the dataset's entry '%s' is in no phase: it is never trained on", section.name)
    for before, after in itertools.pairwise(phases):
        if before.digest() == after.digest():
            log.warning("phase %d changes nothing: its clips, shares and settings are those of phase %d", after.number,
                        before.number)


def cuts(phases: Sequence[Phase]) -> tuple[int, ...]:
    """Steps after which the next phase begins."""
    return tuple(phase.start_step for phase in phases[1:])


def job_phases(phases: Sequence[Phase], run: EpochBatches) -> tuple[JobPhase, ...]:
    """The same for the job, with the batches of this process."""
    made = [(phase, phase.batches(run)) for phase in phases]
    return tuple(JobPhase(phase.start_step, phase.showing, phase.timesteps, batches, batches.per_epoch,
                          batches.samples_in) for phase, batches in made)


def phases_content(plan: "Plan", run: EpochBatches, timesteps: TimestepSettings) -> list[dict[str, Any]]:
    """What a saved state tells of its phases, in values that JSON has; a run without phases is one.

    `current_phase` finds the one of a step in it.
    """
    phases = [(one.start_step, one.batches(run), one.showing, one.timesteps) for one in plan.phases]
    return [{"start_step": start, "order": batches.order(),
             "shown": json.loads(json.dumps({**asdict(showing), **asdict(noise)}))}
            for start, batches, showing, noise in phases or [(0, run, plan.showing, timesteps)]]


def current_phase(content: Sequence[Mapping[str, Any]], step: int) -> Mapping[str, Any]:
    """The part of `phases_content` that the last of `step` steps belongs to."""
    return [one for one in content if one["start_step"] <= max(0, step - 1)][-1]


def epochs_of(phases: Sequence[Phase], run: EpochBatches, accumulation: int) -> int:
    """Epochs that a run of these phases begins."""
    return sum(math.ceil((phase.end_step - phase.start_step) / math.ceil(phase.batches(run).per_epoch / accumulation))
               for phase in phases)


def largest_batch(clips: Sequence[TrainingItem], patch: tuple[int, int, int]) -> tuple[TrainingItem, int]:
    """(a clip, samples) of the batch of one process that has the most tokens."""
    counts: Counter[Any] = Counter()
    for clip in clips:
        counts[clip.bucket] += clip.item.repeats
    sizes = ((clip, min(clip.batch_size, counts[clip.bucket])) for clip in clips)
    return max(sizes, key=lambda pair: tokens(pair[0], patch) * pair[1])


def heaviest(phases: Sequence[Phase], patch: tuple[int, int, int]) -> Phase:
    """The phase with the largest batch, by tokens."""
    def load(phase: Phase) -> int:
        clip, samples = largest_batch(phase.clips, patch)
        return tokens(clip, patch) * samples

    return max(phases, key=load)


def describe(phases: Sequence[Phase], patch: tuple[int, int, int]) -> str:
    """The phases as a table: steps, entries with shares and sizes, what differs, tokens of the largest batch."""
    return "\n".join(table([_HEADINGS, *(_row(phase, patch) for phase in phases)]))


def _row(phase: Phase, patch: tuple[int, int, int]) -> tuple[str, ...]:
    return (str(phase.number), f"{phase.start_step + 1}-{phase.end_step}", _largest(phase, patch), _entries(phase),
            _differs(phase))


def _largest(phase: Phase, patch: tuple[int, int, int]) -> str:
    clip, samples = largest_batch(phase.clips, patch)
    return (f"{samples} x {clip.span.width}x{clip.span.height}x{clip.frames} = "
            f"{samples * tokens(clip, patch)} tokens")


def _entries(phase: Phase) -> str:
    samples: Counter[int] = Counter()
    for clip in phase.clips:
        samples[clip.item.section_index] += clip.item.repeats
    told = []
    for section, name in phase.names.items():
        sizes = sizes_of([clip for clip in phase.clips if clip.item.section_index == section])
        shown = ["x".join(map(str, size)) for size in sizes[:_SIZES]] + [f"{len(sizes)} sizes"] * (len(sizes) > _SIZES)
        share = samples[section] / samples.total() if phase.shares is None else phase.shares[section]
        told.append(f"{name} {100 * share:.3g} % ({', '.join(shown)})")
    return "; ".join(told)


def _differs(phase: Phase) -> str:
    return ", ".join(f"{key} {' '.join(map(str, value)) if isinstance(value, list) else value}"
                     for key, value in phase.overrides.items()) or "-"


class PhaseLines(Callback):
    """Says where a phase begins, and in which one a run goes on."""

    def __init__(self, phases: Sequence[Phase], patch: tuple[int, int, int]) -> None:
        self._phases, self._patch = phases, patch

    def on_start(self, run: Run) -> None:
        """Tell where the run begins."""
        self._tell(run, "goes on in" if run.state.step else "begins with")

    def on_step(self, run: Run, report: StepReport) -> None:
        """Tell that the next step is the first of a phase."""
        if report.step in cuts(self._phases) and not run.is_ending:
            self._tell(run, "goes over to")

    def _tell(self, run: Run, verb: str) -> None:
        if not run.processes.is_main:
            return
        step = run.state.step
        phase = phase_at(self._phases, step)
        log.info("the run %s phase %d at step %d (to step %d): %s; differs: %s; largest batch %s%s", verb, phase.number,
                 step + 1, phase.end_step, _entries(phase), _differs(phase), _largest(phase, self._patch),
                 _memory(run.processes.device))


def _memory(device: torch.device) -> str:
    """Memory of a GPU at this moment, as `; [mem] alloc=…G reserved=…G max_alloc=…G` (GiB); nothing elsewhere."""
    if device.type != "cuda":
        return ""
    alloc, reserved, most = (read(device) / 2**30 for read in (
        torch.cuda.memory_allocated, torch.cuda.memory_reserved, torch.cuda.max_memory_allocated))
    return f"; [mem] alloc={alloc:.2f}G reserved={reserved:.2f}G max_alloc={most:.2f}G"
