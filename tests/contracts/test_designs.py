"""Each audio design as it is trained and guided: mixed prefixes and dropouts in one batch, the loss, the passes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.features import FeatureBatch
from dataset.batches import LoadedBatch
from inference.forward import without
from inference.guidance import ClassifierFree, Guidance, Pass, Scale, Step, TextThenAudio
from networks.lora_wan import create_network
from tests.tiny_dit import tiny_dit, tiny_features, tiny_inputs, tiny_variant
from tests.training.test_job import loss_of
from training.drawn import Place, dropped, prefix_counts
from training.job import JobSettings, VideoJob
from training.showing import Showing
from training.timesteps import TimestepSettings
from wan.conditions.base import Condition
from wan.conditions.prepare import prepare_conditions
from wan.conditions.registry import CONDITIONS, build_condition

DESIGNS = {name: (name,) if kind.starts_from_picture else (name, "reference_channels")
           for name, kind in CONDITIONS.items() if "audio" in kind.features}
"""Every condition that hears, with one that shows it the picture."""
SAMPLES, FRAMES, SEED = 6, 5, 11
MIXED = Showing(prefix_frames=(1, 5, 9, 13), prefix_weights=(1, 1, 1, 1), prefix_dropout=0.25, audio_dropout=0.25,
                text_dropout=0.25, audio_text_dropout=0.15, reference_dropout=0.3)
MODES = ("clean_same_t", "t0", "noised")

every_design = pytest.mark.parametrize("design", DESIGNS)


def conditions_of(design: str, mode: str = "clean_same_t") -> dict[str, Condition]:
    """The design's conditions with random weights, given frames shown in `mode`."""
    torch.manual_seed(7)
    found = {}
    for name in DESIGNS[design]:
        settings = CONDITIONS[name].settings_from_features(tiny_features().features)
        if CONDITIONS[name].starts_from_picture:
            settings["given"] = mode
        if name == "frame_xattn":
            settings |= {"audio_hidden": "16", "audio_tokens": "3", "token_width": "8"}
        found[name] = build_condition(name, settings, tiny_variant())
        for parameter in found[name].parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return found


def job_of(design: str, mode: str = "clean_same_t", showing: Showing = MIXED) -> VideoJob:
    dit = tiny_dit()
    network = create_network(dit, dim=2, alpha=2, conditions=conditions_of(design, mode)).attach().train()
    settings = JobSettings(SEED, TimestepSettings(timestep_sampling="uniform"), showing=showing)
    return VideoJob(dit, network, settings, epoch_batches=lambda epoch, start: iter(()),  # type: ignore[arg-type, return-value]
                    batches_per_epoch=1, samples_per_epoch=SAMPLES)


def batch_of(*indices: int) -> LoadedBatch:
    """These of the six clips, which stand in the epoch at the places of their numbers; the last has no sound."""
    draws = torch.Generator().manual_seed(0)
    rows = 4 * FRAMES - 3
    latents = torch.randn(SAMPLES, 16, FRAMES, 4, 6, generator=draws)
    sound = {name: torch.randn(SAMPLES, count, 3, 4, generator=draws)
             for name, count in (("states", rows), ("before", 2), ("after", 2))}
    text = [torch.randn(3 + i, 12, generator=draws) for i in range(SAMPLES)]
    null = torch.randn(2, 12, generator=draws)
    own = list(indices)
    features = FeatureBatch(
        features={"audio": {name: tensor[own] for name, tensor in sound.items()},
                  "text": {"hidden": [text[i] for i in own], "null": [null] * len(own)},
                  "reference_latents": {"latents": latents[own][:, :, :1]}},
        frames=rows, fps=25.0, present={"audio": torch.tensor([i < SAMPLES - 1 for i in own])})
    span = SimpleNamespace(start=0)
    clips: Any = tuple(SimpleNamespace(name=f"{i}", span=span, item=SimpleNamespace(
        reference_frame=lambda span, i=i: 0 if i % 2 else 3)) for i in own)
    return LoadedBatch(latents[own], features, clips, tuple(own), torch.ones(len(own)), len(own), 1, 0)


def test_the_batch_mixes_lengths_and_dropouts() -> None:
    """What the tests below rest on."""
    place = Place(range(SAMPLES), SEED, 1)
    counts, lost = prefix_counts(MIXED, place, FRAMES), dropped(MIXED, place)
    assert 0 in counts and len(set(counts)) >= 3
    for samples in (lost.sound, lost.text, lost.reference):
        assert samples.any() and not samples.all()


def gradients(one: VideoJob, *parts: tuple[int, ...]) -> tuple[Tensor, list[float]]:
    for parameter in one.parameters:
        parameter.grad = None
    losses: list[float] = []
    for indices in parts:
        result = loss_of(one, batch_of(*indices))
        result.total.backward()  # type: ignore[no-untyped-call]
        losses += result.per_sample.tolist()
    return torch.cat([p.grad.flatten() for p in one.parameters if p.grad is not None]), losses


@every_design
@pytest.mark.parametrize("mode", MODES)
def test_any_cut_of_a_batch_has_its_losses_and_its_gradient(design: str, mode: str) -> None:
    one = job_of(design, mode)
    whole, losses = gradients(one, tuple(range(SAMPLES)))
    for parts in ([(0, 1), (2, 3), (4, 5)], [(i,) for i in range(SAMPLES)]):
        found, again = gradients(one, *parts)
        assert again == pytest.approx(losses, rel=1e-5)
        assert (whole - found).abs().max() <= 2e-5 * whole.abs().max()


@every_design
@pytest.mark.parametrize("mode", MODES)
def test_what_is_predicted_on_given_frames_costs_nothing(design: str, mode: str) -> None:
    one, loaded = job_of(design, mode), batch_of(*range(SAMPLES))
    _, features = one.shown_in_training(loaded, one.epoch(1, 0))
    assert features.given_mask is not None
    is_given, before = features.given_mask > 0, loss_of(one, loaded).per_sample

    def spoiled(where: Tensor) -> Tensor:
        hook = one.dit.register_forward_hook(lambda _, inputs, output: output + 100 * where)
        try:
            return loss_of(one, loaded).per_sample
        finally:
            hook.remove()

    assert torch.equal(spoiled(is_given), before)
    for sample in range(SAMPLES):
        first = torch.zeros_like(is_given)
        first[sample, :, int(is_given[sample, 0, :, 0, 0].sum())] = True
        worse = spoiled(first) > 10 * before
        assert worse.tolist() == [other == sample for other in range(SAMPLES)], "the frame behind the prefix counts"


@every_design
def test_the_mask_channel_tells_of_each_samples_own_prefix(design: str) -> None:
    one = job_of(design)
    latents, features = one.shown_in_training(batch_of(*range(SAMPLES)), one.epoch(1, 0))
    states = prepare_conditions(one.conditions, features, tuple(latents.shape[2:]))
    shown: Any = states[DESIGNS[design][-1]]
    counts = prefix_counts(MIXED, Place(range(SAMPLES), SEED, 1), FRAMES)
    mask = shown.channels[:, -1]
    assert mask.amax((2, 3)).tolist() == mask.amin((2, 3)).tolist()
    assert mask[:, :, 0, 0].tolist() == [[0.0] * count + [1.0] * (FRAMES - count) for count in counts]


@every_design
def test_sound_and_reference_that_are_dropped_reach_no_number(design: str) -> None:
    """Other sound and other pictures change exactly the samples that have them, and no clip without sound gets any."""
    one, loaded = job_of(design), batch_of(*range(SAMPLES))
    lost = dropped(MIXED, Place(range(SAMPLES), SEED, 1))
    hears = ~lost.sound & torch.tensor([i < SAMPLES - 1 for i in range(SAMPLES)])
    sees = ~lost.reference if "reference_channels" in DESIGNS[design] else torch.ones(SAMPLES, dtype=torch.bool)
    before = loss_of(one, loaded).per_sample
    for name, reached in (("audio", hears), ("reference_latents", sees)):
        entries = {key: tensor + 1 for key, tensor in loaded.features.features[name].items()}
        other = _with(loaded, {**loaded.features.features, name: entries})
        assert (loss_of(one, other).per_sample != before).tolist() == reached.tolist(), name
    text = loaded.features.features["text"]
    other = _with(loaded, {**loaded.features.features, "text": {**text, "hidden": [one + 1 for one in text["hidden"]]}})
    assert (loss_of(one, other).per_sample != before).tolist() == (~lost.text).tolist()


def _with(loaded: LoadedBatch, features: Mapping[str, Any]) -> LoadedBatch:
    return replace(loaded, features=replace(loaded.features, features=features))


@every_design
def test_validation_draws_nothing(design: str) -> None:
    """Held-out clips are shown as a generation begins, whatever training does."""
    loaded = batch_of(0, 1)
    shown = [job_of(design, showing=showing).shown(loaded)[1] for showing in (MIXED, Showing())]
    for features in shown:
        assert features.given_mask is not None and features.first_is_still is not None
        assert features.given_mask[:, 0, :, 0, 0].tolist() == [[1, 0, 0, 0, 0]] * 2
        assert features.first_is_still.tolist() == [False, True]
        assert features.present.keys() == {"audio"} and features.present["audio"].all()
        assert all(torch.equal(a, b) for a, b in zip(features.features["text"]["hidden"],
                                                     loaded.features.features["text"]["hidden"], strict=True))


STEP = Step(0, 4, 0.9)
NEGATIVE = Pass("unconditional", negative_text=True, without=frozenset({"audio"}))
MIDDLE = Pass("text", without=frozenset({"audio"}))


@pytest.fixture(params=DESIGNS)
def velocity(request: pytest.FixtureRequest) -> Callable[[Pass], Tensor]:
    """The velocity of each design in a pass."""
    conditions, dit = conditions_of(request.param), tiny_dit()
    latents, timestep, text = tiny_inputs(1)
    negative = [torch.randn(2, 12, generator=torch.Generator().manual_seed(4))]

    def of(one: Pass) -> Tensor:
        states = prepare_conditions(conditions, without(tiny_features(1), one), tuple(latents.shape[2:]))
        return dit(latents, timestep, negative if one.negative_text else text, conditions=states)

    return of


def guided(guidance: Guidance, velocity: Callable[[Pass], Tensor]) -> Tensor:
    return guidance.combine({one.name: velocity(one) for one in guidance.passes(STEP)}, STEP)


def test_guidance_of_every_design_keeps_its_identities(velocity: Callable[[Pass], Tensor]) -> None:
    """Equal strengths are two passes, 1 is the conditional pass, and three passes are OmniAvatar's sum."""
    sound = frozenset({"audio"})

    def three(text: float, audio: float) -> Tensor:
        return guided(TextThenAudio(Scale(text), Scale(audio), sound), velocity)

    negative, middle, full = velocity(NEGATIVE), velocity(MIDDLE), velocity(Pass("conditional"))
    assert not torch.allclose(middle, full, atol=1e-3) and not torch.allclose(negative, middle, atol=1e-3)
    assert torch.equal(three(4.5, 4.5), guided(ClassifierFree(4.5, sound), velocity))
    assert torch.equal(three(1, 1), full)
    assert torch.equal(guided(ClassifierFree(1, sound), velocity), full)
    torch.testing.assert_close(three(4.5, 3), negative + 4.5 * (middle - negative) + 3 * (full - middle))


def test_guidance_does_not_drop_what_training_alone_drops() -> None:
    for name, kind in CONDITIONS.items():
        assert not set(kind.trained_without) & set(kind.droppable), name
        assert set(kind.trained_without) <= set(kind.features)
    assert CONDITIONS["omniavatar_add"].trained_without == ()
