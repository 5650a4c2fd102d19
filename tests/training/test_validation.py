"""What is measured on held-out clips: right numbers, the same ones each time, and no trace in the training."""

from collections.abc import Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.features import FeatureBatch
from dataset.plan import TrainingItem
from networks.lora import LoraNetwork
from networks.lora_wan import create_network
from tests.tiny_dit import tiny_dit, tiny_variant
from tests.training.cached_clips import cached, talking
from training.callbacks import Callback, LevelFigures, Run, RunState, ValidationReport
from training.clips import EpochBatches
from training.job import JobSettings, VideoJob
from training.looking.validation import (
    ClipFigures,
    Validation,
    ValidationSettings,
    default_distance,
    figure_of,
    measure_clip,
    summary,
)
from training.looking.validation import measuring as measuring_
from training.loop import Loop, LoopSettings
from training.processes import Processes
from training.step import StepResult
from training.telling.reports import StepLog
from training.timesteps import TimestepSettings
from wan.conditions.base import Condition, ConditionState
from wan.conditions.omniavatar_add import OmniAvatarAdd, OmniAvatarSettings
from wan.modules.dit import WanDiT

SIGMAS = (0.25, 0.5, 1.0)
SETTINGS = ValidationSettings(seed=5, sigmas=SIGMAS, every=2)
RAMP = 0.01
"""What the hand-made sound rises by in a video frame."""


@dataclass(frozen=True)
class NoSettings:
    """The hand-made condition has none."""


class Heard(ConditionState):
    def __init__(self, words: Tensor) -> None:
        self.words = words


class Ear(Condition):
    """Hears the mean of each latent frame's rows, and zero without sound."""

    name: ClassVar[str] = "ear"
    features: ClassVar[tuple[str, ...]] = ("audio",)
    droppable: ClassVar[tuple[str, ...]] = ("audio",)
    starts_from_picture: ClassVar[bool] = True
    Settings: ClassVar[type] = NoSettings

    def prepare(self, batch: FeatureBatch, grid: tuple[int, int, int]) -> Heard:
        rows = self.feature(batch, "audio")["states"][:, :, 0, 0]
        words = torch.cat((rows[:, :1], rows[:, 1:].unflatten(1, (-1, 4)).mean(2)), dim=1)
        present = batch.present.get("audio")
        return Heard(words if present is None else words * present[:, None])


class BoundEar(Ear):
    """An ear that cannot go without sound."""

    droppable: ClassVar[tuple[str, ...]] = ()


class Speaker:
    """A model whose clean picture is what it hears: v = (x_sigma - heard) / sigma, because v = (x_sigma - x0) / sigma.

    Where x0 is what was right to hear, its error is (x0 - heard) / sigma.
    """

    variant = tiny_variant()
    device = torch.device("cpu")

    def __call__(self, noisy: Tensor, timestep: Tensor, text: Any, *, conditions: dict[str, Heard], **_: Any) -> Tensor:
        return (noisy - conditions["ear"].words[:, None, :, None, None]) / (timestep / 1000).reshape(-1, 1, 1, 1, 1)


def hand_made_job(ear: type[Ear] = Ear) -> VideoJob:
    network = LoraNetwork({}, sizes={}, conditions={"ear": ear(NoSettings(), Speaker.variant)})
    model: Any = Speaker()
    return VideoJob(model, network, JobSettings(0, TimestepSettings()), epoch_batches=lambda epoch, start: iter(()),
                    batches_per_epoch=1, samples_per_epoch=1)


def ramp_clip(folder: Path, rows: Tensor | None = None, *, frames: int = 81) -> TrainingItem:
    """A clip that shows the ramp, with `rows` as its sound (default: the ramp, as is right)."""
    ramp = RAMP * torch.arange(float(frames))
    shown = torch.cat((ramp[:1], ramp[1:].unflatten(0, (-1, 4)).mean(1)))
    sound = (ramp if rows is None else rows)[:, None, None].expand(-1, 3, 4)
    tensors = {"latents": shown[None, :, None, None].expand(16, -1, 4, 6), "text": torch.zeros(3, 12), "audio": sound}
    return cached(folder, "ramp", tensors, frames=frames)


def figures(job: VideoJob, clip: TrainingItem, settings: ValidationSettings = SETTINGS) -> ClipFigures:
    with measuring_(job.network, torch.device("cpu")):
        return measure_clip(job, clip, settings)


def report(*parts: ClipFigures) -> ValidationReport:
    return summary(parts, step=0, epoch=0, seconds=0.0)


def test_the_gap_is_what_a_shifted_sound_costs_in_closed_form(tmp_path: Path) -> None:
    """Five frames of the ramp are an error of 0.05 / sigma in every frame, either way; no sound is the ramp itself."""
    found = report(figures(hand_made_job(), ramp_clip(tmp_path)))
    inverse = sum(1 / sigma**2 for sigma in SIGMAS) / len(SIGMAS)
    middles = [RAMP * (4 * t - 1.5) for t in range(2, 19)]
    audio = found.audio
    assert audio is not None and audio.null_gap is not None
    assert audio.right == pytest.approx(0, abs=1e-9) and found.loss == pytest.approx(0, abs=1e-9)
    assert audio.late == pytest.approx((5 * RAMP) ** 2 * inverse, rel=1e-4)
    assert audio.early == pytest.approx((5 * RAMP) ** 2 * inverse, rel=1e-4)
    assert audio.gap == pytest.approx((5 * RAMP) ** 2 * inverse, rel=1e-4)
    assert audio.null_gap == pytest.approx(sum(one**2 for one in middles) / len(middles) * inverse, rel=1e-4)


def test_a_network_that_prefers_the_wrong_moment_has_a_gap_below_zero(tmp_path: Path) -> None:
    """Trained on sound that comes 5 frames late, the late one is right: 0 and 10 frames off, against 5 off."""
    rows = RAMP * (torch.arange(81.0) + 5)
    audio = report(figures(hand_made_job(), ramp_clip(tmp_path, rows))).audio
    assert audio is not None and audio.late < 1e-8 < audio.right < audio.early
    assert audio.gap == pytest.approx(audio.right, rel=1e-3)  # (0 + 100) / 2 - 25 = 25


def test_frames_at_the_edge_are_in_no_comparison(tmp_path: Path) -> None:
    """The last rows are heard by frames that are not compared; the held-out loss does see them."""
    plain = figures(hand_made_job(), ramp_clip(tmp_path))
    rows = RAMP * torch.arange(81.0)
    rows[78:] += 100
    loud = figures(hand_made_job(), ramp_clip(tmp_path, rows))
    assert loud.by_sound == plain.by_sound
    assert min(loud.loss) > 1 > max(plain.loss)


def test_a_condition_that_cannot_go_without_sound_has_no_null_gap(tmp_path: Path) -> None:
    audio = report(figures(hand_made_job(BoundEar), ramp_clip(tmp_path))).audio
    assert audio is not None and audio.silent is None and audio.null_gap is None and audio.gap > 0


def real_job(*, is_fresh: bool = False, clips: Sequence[TrainingItem] = ()) -> VideoJob:
    """A tiny DiT with LoRA, dropouts and OmniAvatar's condition, on cached clips."""
    dit = tiny_dit()
    condition = OmniAvatarAdd(OmniAvatarSettings(audio_hidden=8, audio_states=3, audio_width=4), dit.variant)
    if not is_fresh:
        torch.manual_seed(3)
        for parameter in condition.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    network = create_network(dit, dim=2, alpha=2, dropout=0.2, args={"rank_dropout": "0.2", "module_dropout": "0.1"},
                             conditions={"omniavatar_add": condition}).attach().train()
    with torch.no_grad():
        for layer in network.layers.values():
            layer.lora_up.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(5))
    batches = EpochBatches(list(clips), seed=1, processes=Processes())
    return VideoJob(dit, network, JobSettings(1, TimestepSettings(timestep_sampling="shift")), epoch_batches=batches,
                    batches_per_epoch=batches.per_epoch, samples_per_epoch=batches.samples_per_epoch)


def test_an_untrained_condition_has_gaps_of_exactly_zero(tmp_path: Path) -> None:
    audio = report(*(figures(real_job(is_fresh=True), talking(tmp_path, name)) for name in "abc")).audio
    assert audio is not None and audio.clips == 3
    assert audio.gap == 0 and audio.null_gap == 0 and audio.right == audio.late == audio.early == audio.silent > 0


def test_a_condition_that_hears_has_other_losses_for_other_sounds(tmp_path: Path) -> None:
    audio = report(figures(real_job(), talking(tmp_path, "a"))).audio
    assert audio is not None and len({audio.right, audio.late, audio.early, audio.silent}) == 4


def test_the_held_out_loss_is_the_training_loss_at_that_noise_level_without_dropout(tmp_path: Path) -> None:
    """By hand: x_sigma with the clip's first frame put in, the network's velocity, the mean over the other frames."""
    from common.seeding import generator
    from training.clips import read_one
    from wan.conditions.prepare import prepare_conditions

    job, clip = real_job(), talking(tmp_path, "a")
    found = figures(job, clip)
    latents, features = job.shown(read_one(clip))
    noise = torch.randn(latents.shape, generator=generator(5, "validation noise a/0+21/48x32", 1))
    noisy = 0.5 * latents + 0.5 * noise
    noisy[:, :, 0] = latents[:, :, 0]
    with measuring_(job.network, torch.device("cpu")):
        states = prepare_conditions(job.conditions, features, tuple(latents.shape[2:]))
        assert isinstance(job.dit, WanDiT)
        velocity = job.dit(noisy, torch.tensor([500.0]), features.features["text"]["hidden"], conditions=states)
    expected = (velocity - (noise - latents))[:, :, 1:].pow(2).mean()
    assert found.loss[1] == pytest.approx(expected.item(), rel=1e-6)


def test_measuring_again_gives_the_same_bits_whatever_the_order_and_the_share(tmp_path: Path) -> None:
    job, clips = real_job(), [talking(tmp_path, name) for name in "abcde"]
    first = [figures(job, clip) for clip in clips]
    torch.manual_seed(99)
    backwards = [figures(job, clip) for clip in clips[::-1]][::-1]
    assert first == backwards
    shares = {number: figures(job, clips[number]) for rank in (1, 0) for number in range(rank, 5, 2)}
    assert report(*(shares[number] for number in range(5))) == report(*first)


def test_noise_follows_the_seed_the_clip_and_the_level(tmp_path: Path) -> None:
    job, clip = real_job(), talking(tmp_path, "a")
    assert figures(job, clip, ValidationSettings(6, SIGMAS, 1)).loss != figures(job, clip).loss
    twice = figures(job, clip, ValidationSettings(5, (0.5, 0.5), 1)).loss
    assert twice[0] != twice[1]


def test_what_cannot_be_compared_is_counted_and_told(tmp_path: Path) -> None:
    job = real_job()
    clips = [talking(tmp_path, "a"), talking(tmp_path, "b", frames=13), talking(tmp_path, "c", has_sound=False),
             talking(tmp_path, "d", frames=9)]
    found = report(*(figures(job, clip) for clip in clips))
    assert found.clips == 4 and found.audio is not None and found.audio.clips == 1
    assert found.note == "2 clips shorter than 17 frames, 1 clip without sound"
    assert found.words.endswith("(not compared: 2 clips shorter than 17 frames, 1 clip without sound)")
    none = report(*(figures(job, clip) for clip in clips[1:]))
    assert none.audio is None
    assert none.words == f"held-out loss {none.loss:.4f}, no audio gap ({found.note})"


def test_a_clip_of_which_nothing_is_measured_is_told_and_no_figure() -> None:
    """As a GPU gives it: there the loss of an empty mask is NaN, because the host does not wait for what it holds."""
    def result(loss: float, mask: float) -> StepResult:
        one = torch.ones(1)
        return StepResult(one, torch.tensor([loss]), one, one, torch.full((1, 1, 2, 2, 2), mask))

    with pytest.raises(UserError, match="its loss mask is 0 everywhere"):
        figure_of(result(float("nan"), 0.0))
    assert figure_of(result(0.5, 1.0)) == 0.5 and figure_of(result(float("nan"), 1.0)) != 0.5


def test_without_a_condition_that_hears_there_is_a_loss_alone(tmp_path: Path) -> None:
    dit = tiny_dit()
    network = create_network(dit, dim=2).attach().train()
    job = VideoJob(dit, network, JobSettings(1, TimestepSettings()), epoch_batches=lambda epoch, start: iter(()),
                   batches_per_epoch=1, samples_per_epoch=1)
    found = report(figures(job, talking(tmp_path, "a")))
    assert found.audio is None and found.note == "" and found.words == f"held-out loss {found.loss:.4f}"


class Constant:
    def step(self) -> None:
        pass


class Reports(Callback):
    def __init__(self) -> None:
        self.all: list[ValidationReport] = []

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        self.all.append(report)


def fit(job: VideoJob, *callbacks: Callback, steps: int = 5, state: RunState | None = None, is_resumed: bool = False
        ) -> Loop:
    optimizer = torch.optim.AdamW(job.parameters, lr=1e-2)
    loop = Loop(job, optimizer=optimizer, schedule=Constant(), settings=LoopSettings(steps=steps, accumulation=2),
                processes=Processes(), callbacks=callbacks)
    loop.state, loop.is_resumed = state or loop.state, is_resumed
    loop.run()
    return loop


def test_training_goes_the_same_way_with_and_without_validation(tmp_path: Path) -> None:
    clips, held_out = [talking(tmp_path, name) for name in "abc"], [talking(tmp_path, name) for name in "xy"]
    ends = []
    for is_measured in (False, True):
        job, reports = real_job(clips=clips), Reports()
        (tmp_path / str(is_measured)).mkdir()
        callbacks = [StepLog(tmp_path / str(is_measured), "run"), reports]
        if is_measured:
            callbacks.append(Validation(job, held_out, ValidationSettings(5, SIGMAS, 1)))
        fit(job, *callbacks)
        assert len(reports.all) == (6 if is_measured else 0)
        assert job.network.training and all(module.training for module in job.network.modules())
        lines = [json.loads(line) for line in (tmp_path / str(is_measured) / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        gradients = [parameter.grad.clone() for parameter in job.parameters if parameter.grad is not None]
        ends.append((losses, torch.get_rng_state(), job.network.state(), gradients))
    (losses, random, weights, gradients), (losses_, random_, weights_, gradients_) = ends
    assert losses == losses_ and len(losses) == 5
    assert torch.equal(random, random_)
    assert all(torch.equal(weights[key], weights_[key]) for key in weights)
    assert gradients and all(torch.equal(*pair) for pair in zip(gradients, gradients_, strict=True))


def test_the_start_every_few_steps_and_the_end_are_measured(tmp_path: Path) -> None:
    clips = [talking(tmp_path, name, frames=5) for name in "ab"]
    job, reports = real_job(clips=clips), Reports()
    fit(job, reports, Validation(job, clips, ValidationSettings(5, (0.5,), 2)), steps=5)
    assert [one.step for one in reports.all] == [0, 2, 4, 5]
    assert len({one.loss for one in reports.all}) == 4
    job, again = real_job(clips=clips), Reports()
    fit(job, again, Validation(job, clips, ValidationSettings(5, (0.5,), 2)), steps=4)
    assert [one.step for one in again.all] == [0, 2, 4]
    assert [one.loss for one in again.all] == [one.loss for one in reports.all[:3]]


def test_the_passes_that_are_told_are_those_that_are_made(tmp_path: Path) -> None:
    job = real_job()
    clips = [talking(tmp_path, "a"), talking(tmp_path, "b", frames=13), talking(tmp_path, "c", has_sound=False)]
    made = 0

    def count(*_: Any) -> None:
        nonlocal made
        made += 1

    handle = job.dit.register_forward_hook(count)
    for clip in clips:
        figures(job, clip)
    handle.remove()
    assert made == Validation(job, clips, SETTINGS).passes == (4 + 1 + 1) * len(SIGMAS)


def test_measurements_are_rare_in_short_runs_and_ten_in_long_ones() -> None:
    assert default_distance(30) == 100 and default_distance(1600) == 160 and default_distance(20_000) == 2000


def test_a_clip_that_a_budget_shortens_is_measured_as_far_as_it_is_shown(tmp_path: Path) -> None:
    """The gap is what five frames of the ramp cost, on fewer frames too; what is too short is not compared."""
    whole = ramp_clip(tmp_path)
    inverse = sum(1 / sigma**2 for sigma in SIGMAS) / len(SIGMAS)
    found = report(figures(hand_made_job(), whole.cut(41)))
    assert found.audio is not None and found.audio.gap == pytest.approx((5 * RAMP) ** 2 * inverse, rel=1e-4)
    assert figures(hand_made_job(), whole.cut(13)).reason == "shorter than 17 frames"


def test_each_noise_level_has_figures_of_its_own(tmp_path: Path) -> None:
    """By hand on two clips: the ramp's own sound, and a sound five frames late, whose error is 0.05 / sigma."""
    clips = [ramp_clip(tmp_path / "a"), ramp_clip(tmp_path / "b", RAMP * (torch.arange(81.0) + 5))]
    found = report(*(figures(hand_made_job(), clip) for clip in clips))
    late = (5 * RAMP) ** 2
    for one, sigma in zip(found.by_sigma, SIGMAS, strict=True):
        assert one.sigma == sigma and one.gap is not None
        # In units of late / sigma^2: (1 + 1) / 2 - 0 = 1 on the first clip, (4 + 0) / 2 - 1 = 1 on the second.
        assert one.gap == pytest.approx(late / sigma**2, rel=1e-3)
    assert sum(one.loss for one in found.by_sigma) / 3 == pytest.approx(found.loss, rel=1e-6)
    assert found.audio is not None
    assert sum(one.gap or 0 for one in found.by_sigma) / 3 == pytest.approx(found.audio.gap, rel=1e-6)
    assert [line.split() for line in found.table.splitlines()][0] == ["noise", "level", "0.25", "0.5", "1"]
    assert len(found.table.splitlines()) == 3


def test_levels_without_a_gap_have_no_row_of_gaps() -> None:
    plain = ValidationReport(1, 1, 0.5, 1, None, "", 0.1, (LevelFigures(0.3, 0.5), LevelFigures(0.9, 0.25)))
    assert [line.split() for line in plain.table.splitlines()] == [
        ["noise", "level", "0.3", "0.9"], ["held-out", "loss", "0.5000", "0.2500"]]
