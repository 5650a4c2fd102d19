"""Phases in a run: which batches come at which step, with what; no number of a model is looked at."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from dataset.plan import TrainingItem
from networks.lora_wan import create_network
from tests.tiny_dit import tiny_dit
from tests.training.cached_clips import talking
from tests.training.line import Constant
from training.callbacks import Callback, Run, RunState, StepReport
from training.clips import EpochBatches
from training.job import JobPhase, JobSettings, ReadyBatch, VideoJob, phase_at
from training.loop import Loop, LoopSettings
from training.passes import BatchLoss
from training.phases import Phase, PhaseLines, cuts, describe, epochs_of, job_phases, largest_batch
from training.processes import Processes
from training.showing import Showing
from training.timesteps import TimestepSettings, stratified_uniforms

SMALL, LARGE = 0, 1
NAMES = {SMALL: "480p", LARGE: "720p"}
PATCH = (1, 2, 2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingItem]:
    """Five clips of 480p, and three of 720p with fewer frames; only their names are of that size."""
    folder = tmp_path_factory.mktemp("clips")
    made = [talking(folder, f"small {number}", frames=9) for number in range(5)]
    made += [talking(folder, f"large {number}", frames=5) for number in range(3)]
    return [replace(one, item=replace(one.item, section_index=LARGE if "large" in one.name else SMALL))
            for one in made]


def phase(number: int, start: int, clips: Sequence[TrainingItem], shares: Mapping[int, float] | None = None, *,
          end: int = 200, sections: Sequence[int] = (SMALL, LARGE), overrides: Mapping[str, Any] | None = None,
          **changes: Any) -> Phase:
    """A phase of the clips of `sections`; `changes` are those of `Phase`."""
    own = [clip for clip in clips if clip.item.section_index in sections]
    return Phase(**{"number": number, "start_step": start, "end_step": end, "names": {s: NAMES[s] for s in sections},
                    "shares": shares, "clips": own, "showing": Showing(), "timesteps": TimestepSettings(),
                    "overrides": overrides or {}, **changes})


class Watching(VideoJob):
    """The trainer's own job, which notes its batches and counts losses of its weights instead of running the model."""

    def __init__(self, phases: Sequence[JobPhase]) -> None:
        dit = tiny_dit()
        super().__init__(dit, create_network(dit, dim=1, alpha=1).attach(), JobSettings(0, TimestepSettings()),
                         epoch_batches=phases[0].epoch_batches, batches_per_epoch=phases[0].batches_per_epoch,
                         samples_per_epoch=0, phases=phases)
        self.parameters = self.parameters[:1]
        self.seen: list[ReadyBatch] = []

    def loss(self, batch: ReadyBatch) -> BatchLoss:
        self.seen.append(batch)
        losses = self.parameters[0].pow(2).mean().expand(len(batch.items))
        return BatchLoss(losses.sum(), losses.detach(), tuple(one.name for one in batch.items))


class Steps(Callback):
    """The batches of every step, and the state after it."""

    def __init__(self, job: Watching) -> None:
        self.job, self.batches, self.states = job, [], []  # type: ignore[var-annotated]

    def on_step(self, run: Run, report: StepReport) -> None:
        done = sum(map(len, self.batches))
        self.batches.append(self.job.seen[done:])
        self.states.append(deepcopy(run.state))

    @property
    def entries(self) -> list[set[int]]:
        """Entries of the dataset that each step saw."""
        return [{one.item.section_index for batch in step for one in batch.items} for step in self.batches]

    @property
    def names(self) -> list[list[tuple[int, int, tuple[str, ...]]]]:
        """(epoch, first position, names) of each batch of each step."""
        return [[(batch.epoch, batch.positions[0], tuple(one.name for one in batch.items)) for batch in step]
                for step in self.batches]


def run(phases: Sequence[Phase], *callbacks: Callback, steps: int = 200, accumulation: int = 1,
        state: RunState | None = None) -> Steps:
    """A run of the loop through `phases`, from `state` on."""
    batches = EpochBatches(phases[0].clips, seed=5, processes=Processes())
    job = Watching(job_phases(phases, batches))
    seen = Steps(job)
    loop = Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=0.0), schedule=Constant(), processes=Processes(),
                settings=LoopSettings(steps=steps, accumulation=accumulation, cuts=cuts(phases)),
                callbacks=[seen, *callbacks])
    if state is not None:
        loop.state = deepcopy(state)
    loop.run()
    return seen


def two(clips: Sequence[TrainingItem], start: int = 5, share: float = 0.5) -> list[Phase]:
    """The source's schedule: small clips first, then large ones with a probability."""
    return [phase(1, 0, clips, sections=[SMALL], end=start), phase(2, start, clips, {SMALL: 1 - share, LARGE: share})]


def test_no_large_clip_before_the_second_phase_and_about_half_after(clips: list[TrainingItem]) -> None:
    """phase_two_start_step 5, max_hw 1280, phase_two_highres_prob 0.5, 200 steps."""
    entries = run(two(clips)).entries
    assert len(entries) == 200 and entries[:5] == [{SMALL}] * 5
    assert 70 <= entries.count({LARGE}) <= 125, "97.5 of 195 expected, four deviations of 7"


@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("start", [1, 4, 5, 7])
def test_the_switch_is_at_its_step_wherever_an_epoch_stands(clips: list[TrainingItem], start: int, accumulation: int
                                                           ) -> None:
    """An epoch of the small clips has five batches; with accumulation its last step has fewer."""
    phases = [phase(1, 0, clips, sections=[SMALL]), phase(2, start, clips, sections=[LARGE])]
    seen = run(phases, steps=start + 4, accumulation=accumulation)
    assert seen.entries == [{SMALL}] * start + [{LARGE}] * 4
    assert len(seen.batches[start]) == min(accumulation, 3), "the new phase begins with a whole step"
    assert seen.states[start].batches_in_epoch == min(accumulation, 3)
    assert seen.states[start].epoch == seen.states[start - 1].epoch + 1


def test_a_run_from_a_state_in_the_middle_sees_what_the_straight_one_saw(clips: list[TrainingItem]) -> None:
    phases = [*two(clips, start=7), phase(3, 12, clips, sections=[LARGE])]
    straight = run(phases, steps=18, accumulation=2)
    for done in range(1, 18):
        rest = run(phases, steps=18, accumulation=2, state=straight.states[done - 1])
        assert rest.names == straight.names[done:], f"from step {done} on"


def test_two_processes_see_the_same_global_batches_as_one_with_twice_the_batch(clips: list[TrainingItem]) -> None:
    def counted(batch_size: int, processes: int) -> list[list[list[tuple[int, str]]]]:
        """(position, clip) of each global batch of four epochs of each phase."""
        own = [replace(clip, item=replace(clip.item, batch_size=batch_size)) for clip in clips]
        found = []
        for one in two(own):
            for epoch in range(1, 5):
                ranks = [list(one.batches(EpochBatches(own, 5, Processes(rank, processes))).sampler(epoch))
                         for rank in range(processes)]
                found.append([sorted((position, item.name) for plan in plans
                                     for position, item, weight in zip(plan.positions, plan.items, plan.weights,
                                                                       strict=True) if weight)
                              for plans in zip(*ranks, strict=True)])
        return found

    assert counted(2, 1) == counted(1, 2)


def test_without_phases_epochs_are_what_they_were(clips: list[TrainingItem]) -> None:
    """One phase over all clips, without shares, is the plain run."""
    plain = EpochBatches(clips, seed=5, processes=Processes())
    names = [[(epoch, plan.positions[0], tuple(one.name for one in plan.items))] for epoch in (1, 2)
             for plan in plain.sampler(epoch)]
    assert run([phase(1, 0, clips)], steps=16).names == names


class Looking(VideoJob):
    """Notes the noise settings and draws of each step."""

    told: list[tuple[TimestepSettings, Tensor]]

    def steps(self, latents: Any, features: Any, draws: Any, timesteps: Any, weights: Any = (None,)) -> Any:
        self.told.append((timesteps, draws.uniform))
        return super().steps(latents, features, draws, timesteps, weights)


def looking(phases: Sequence[Phase], **settings: Any) -> Looking:
    """A job on the tiny model."""
    dit = tiny_dit()
    batches = EpochBatches(phases[0].clips, seed=5, processes=Processes())
    job = Looking(dit, create_network(dit, dim=1, alpha=1).attach(), JobSettings(5, TimestepSettings(), **settings),
                  epoch_batches=batches, batches_per_epoch=1, samples_per_epoch=1, phases=job_phases(phases, batches))
    job.told = []
    return job


def test_dropouts_and_noise_levels_change_with_the_switch(clips: list[TrainingItem]) -> None:
    early, late = TimestepSettings(), TimestepSettings(timestep_sampling="uniform", min_timestep=900.0)
    phases = [phase(1, 0, clips, sections=[SMALL], timesteps=early),
              phase(2, 5, clips, sections=[SMALL], timesteps=late, showing=Showing(audio_dropout=1.0))]
    job = looking(phases)

    def shown(epoch: int, step: int) -> tuple[list[bool], TimestepSettings]:
        [batch, *_] = list(job.batches(epoch, step, 0))
        assert batch is not None
        job.loss(batch)
        present = batch.features.present.get("audio", torch.ones(1, dtype=torch.bool))
        return present.tolist(), job.told[-1][0]

    assert [shown(1, 0), shown(2, 4)] == [([True], early)] * 2
    assert [shown(2, 5), shown(3, 9)] == [([False], late)] * 2


def test_epochs_that_are_read_side_by_side_keep_their_phase_and_draws(clips: list[TrainingItem]) -> None:
    """The next epoch's first batch is made while the last of this one is not yet learnt from."""
    phases = [phase(1, 0, clips, sections=[SMALL]),
              phase(2, 5, clips, sections=[SMALL], timesteps=TimestepSettings(min_timestep=900.0),
                    showing=Showing(audio_dropout=1.0))]
    job = looking(phases, timestep_buckets=4)
    alone = [*job.batches(1, 0, 0), *job.batches(2, 5, 0)]
    first, second = job.batches(1, 0, 0), job.batches(2, 5, 0)
    pairs = [*zip(first, second, strict=True)]
    mixed = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    assert [one and one.epoch for one in mixed] == [1] * 5 + [2] * 5
    for one, other in zip(mixed, alone, strict=True):
        assert one is not None and other is not None and one.timesteps == other.timesteps
        assert torch.equal(one.draws.uniform, other.draws.uniform) and torch.equal(one.draws.noise, other.draws.noise)
        assert one.features.present.keys() == other.features.present.keys()
        assert torch.equal(job.loss(one).per_sample, job.loss(other).per_sample)


def test_stratified_draws_are_spread_over_the_samples_of_the_phase(clips: list[TrainingItem]) -> None:
    pairs = [replace(clip, item=replace(clip.item, batch_size=2)) for clip in clips]
    phases = two(pairs)
    job = looking(phases, timestep_buckets=4)
    for epoch, step in ((1, 0), (2, 5), (3, 9)):
        count = job.epoch_length(step)
        batches = [batch for batch in job.batches(epoch, step, 0) if batch is not None]
        assert len(batches) == count == (3 if step < 5 else 5)
        samples = sum(len(batch.positions) for batch in batches)
        expected = stratified_uniforms(samples, 4, seed=5, epoch=epoch)
        for batch in batches:
            job.loss(batch)
            assert torch.equal(job.told[-1][1], expected[list(batch.positions)])


def test_the_phase_of_a_step_begins_after_as_many_steps() -> None:
    phases = [JobPhase(start, Showing(), TimestepSettings(), lambda epoch, start: iter(()),  # type: ignore[arg-type]
                       1, lambda epoch: 1) for start in (0, 5, 9)]
    assert [phase_at(phases, step).start_step for step in (0, 4, 5, 8, 9, 99)] == [0, 0, 5, 5, 9, 9]


def test_epochs_are_counted_over_the_phases(clips: list[TrainingItem]) -> None:
    phases = [phase(1, 0, clips, sections=[SMALL], end=7), phase(2, 7, clips, sections=[LARGE], end=20)]
    batches = EpochBatches(clips, seed=5, processes=Processes())
    for accumulation in (1, 2):
        seen = run(phases, steps=20, accumulation=accumulation)
        assert epochs_of(phases, batches, accumulation) == seen.states[-1].epoch


def test_the_table_tells_steps_shares_sizes_and_tokens(clips: list[TrainingItem]) -> None:
    pairs = [replace(clip, item=replace(clip.item, batch_size=2)) for clip in clips]
    phases = [phase(1, 0, pairs, sections=[LARGE], end=5),
              phase(2, 5, pairs, {SMALL: 0.25, LARGE: 0.75}, overrides={"prefix_frames": [1, 5], "audio_dropout": 0.2})]
    head, first, second = describe(phases, PATCH).splitlines()
    assert head.split()[:2] == ["phase", "steps"]
    assert first.split()[:2] == ["1", "1-5"] and "2 x 48x32x5 = 24 tokens" in first
    assert "720p 100 % (48x32x5)" in first and first.endswith("-")
    assert "6-200" in second and "2 x 48x32x9 = 36 tokens" in second
    assert "480p 25 % (48x32x9); 720p 75 % (48x32x5)" in second
    assert second.endswith("prefix_frames 1 5, audio_dropout 0.2")
    alone = [clip for clip in pairs if clip.name.startswith("large 1")]
    assert largest_batch(alone, PATCH)[1] == 1, "a batch holds no more than there are clips"


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[..., list[str]]:
    """Function that runs phases and returns the lines that were told of them."""
    def of(phases: Sequence[Phase], **more: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            run(phases, PhaseLines(phases, PATCH), **more)
        return [line for line in caplog.messages if line.startswith("the run ")]

    return of


def test_the_log_tells_start_and_switch_and_where_a_run_goes_on(clips: list[TrainingItem],
                                                              told: Callable[..., list[str]]) -> None:
    phases = two(clips)
    first, second = told(phases, steps=9)
    assert first.startswith("the run begins with phase 1 at step 1 (to step 5): 480p 100 % (48x32x9); differs: -; "
                            "largest batch 1 x 48x32x9 = 18 tokens") and "[mem]" not in first
    assert second.startswith("the run goes over to phase 2 at step 6 (to step 200): 480p 50 %")
    state = run(phases, steps=7).states[-1]
    assert [line[:36] for line in told(phases, steps=9, state=state)] == ["the run goes on in phase 2 at step 8"]
    assert len(told(phases, steps=5)) == 1, "a run that ends at the switch goes over to nothing"
