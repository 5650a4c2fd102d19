"""Guidance on numbers that can be checked by hand."""

import pytest
import torch

from common.errors import UserError
from inference.guidance import Chained, ClassifierFree, Scale, Step, TextThenAudio, is_guided

STEP = Step(0, 1, 1.0)
AUDIO = frozenset({"audio"})
PREDICTIONS = {"unconditional": torch.tensor(1.0), "text": torch.tensor(3.0), "audio": torch.tensor(4.0),
               "conditional": torch.tensor(9.0)}


def names(guidance: Chained, step: Step = STEP) -> list[str]:
    return [one.name for one in guidance.passes(step)]


def both(text: float, audio: float, order: str = "omniavatar", **settings) -> TextThenAudio:
    return TextThenAudio(Scale(text, **settings), Scale(audio, **settings), AUDIO, order)


def value(guidance: Chained, step: Step = STEP) -> float:
    """The combination, given exactly the passes that the step asks for."""
    return guidance.combine({name: PREDICTIONS[name] for name in names(guidance, step)}, step).item()


def test_scale_one_runs_one_pass_and_changes_nothing():
    guidance = ClassifierFree(1.0, AUDIO)
    assert [one.name for one in guidance.all_passes] == ["conditional"]
    velocity = torch.randn(3)
    assert guidance.combine({"conditional": velocity}, STEP) is velocity


def test_two_passes_extrapolate_from_the_negative_one():
    guidance = ClassifierFree(4.5)
    combined = guidance.combine({"conditional": torch.tensor(3.0), "unconditional": torch.tensor(1.0)}, STEP)
    assert combined.item() == 1 + 4.5 * 2


def test_scale_zero_is_the_negative_pass_alone():
    guidance = ClassifierFree(0.0)
    assert names(guidance) == [one.name for one in guidance.all_passes] == ["unconditional"]
    assert value(guidance) == 1


def test_the_negative_pass_has_the_negative_text_and_lacks_what_is_dropped():
    conditional, unconditional = ClassifierFree(4.5, AUDIO).passes(STEP)
    assert not conditional.negative_text and conditional.without == frozenset()
    assert unconditional.negative_text and unconditional.without == {"audio"}


def test_three_passes_of_omniavatar_guide_text_first_and_sound_on_top():
    guidance = both(4.0, 2.5)
    assert value(guidance) == 1 + 4.0 * (3 - 1) + 2.5 * (9 - 3)
    middle = next(one for one in guidance.all_passes if one.name == "text")
    assert not middle.negative_text and middle.without == {"audio"}


def test_three_passes_of_multitalk_guide_sound_first_and_text_on_top():
    guidance = both(5.0, 4.0, "multitalk")
    assert value(guidance) == 1 + 4.0 * (4 - 1) + 5.0 * (9 - 4)
    middle = next(one for one in guidance.all_passes if one.name == "audio")
    assert middle.negative_text and middle.without == frozenset()


@pytest.mark.parametrize("order", ["omniavatar", "multitalk"])
@pytest.mark.parametrize(("text", "audio", "passes"), [
    (4.5, 4.5, ["conditional", "unconditional"]),
    (1.0, 1.0, ["conditional"]),
    (0.0, 0.0, ["unconditional"]),
])
def test_equal_strengths_are_plain_guidance(order, text, audio, passes):
    guidance, plain = both(text, audio, order), ClassifierFree(text, AUDIO)
    assert names(guidance) == [one.name for one in guidance.all_passes] == passes
    assert guidance.passes(STEP) == plain.passes(STEP) and value(guidance) == value(plain)


@pytest.mark.parametrize(("text", "audio", "order", "passes", "expected"), [
    (1.0, 3.0, "omniavatar", ["conditional", "text"], 3 + 3 * (9 - 3)),
    (4.0, 0.0, "omniavatar", ["text", "unconditional"], 1 + 4 * (3 - 1)),
    (1.0, 0.0, "omniavatar", ["text"], 3),
    (1.0, 2.0, "multitalk", ["conditional", "audio", "unconditional"], 1 + 2 * (4 - 1) + 9 - 4),
    (3.0, 1.0, "multitalk", ["conditional", "audio"], 4 + 3 * (9 - 4)),
])
def test_passes_that_the_sum_does_not_need_are_not_run(text, audio, order, passes, expected):
    guidance = both(text, audio, order)
    assert names(guidance) == passes and set(names(guidance)) == {one.name for one in guidance.all_passes}
    assert value(guidance) == expected


def test_linear_annealing_follows_the_published_list():
    """7.5 over 50 steps: 7.5 at the start, 6.2 at step 10, 4.25 at 25, 1.13 at 49 (OmniHuman-1)."""
    scale = Scale(7.5, "linear")
    assert [round(scale.at(Step(i, 50, 0.5)), 2) for i in (0, 10, 25, 49)] == [7.5, 6.2, 4.25, 1.13]
    assert {Scale(7.5).at(Step(i, 50, 0.5)) for i in range(50)} == {7.5}


def test_cosine_annealing_starts_at_the_value_and_passes_the_middle_at_half():
    scale = Scale(5.0, "cosine")
    assert scale.at(Step(0, 10, 1.0)) == 5.0 and scale.at(Step(5, 10, 0.5)) == pytest.approx(3.0)
    falls = [scale.at(Step(i, 10, 0.5)) for i in range(10)]
    assert falls == sorted(falls, reverse=True) and falls[-1] > 1


def test_outside_the_interval_one_pass_is_enough():
    guidance = both(4.0, 2.5, interval=(0.25, 0.75))
    assert [len(guidance.passes(Step(i, 4, 0.5))) for i in range(4)] == [1, 3, 3, 1]
    assert value(guidance, Step(0, 4, 1.0)) == 9
    apart = TextThenAudio(Scale(4.0, interval=(0.0, 0.5)), Scale(4.0), AUDIO)
    assert [names(apart, Step(i, 2, 0.5)) for i in range(2)] == [["conditional", "unconditional"],
                                                                ["conditional", "text"]]
    assert {one.name for one in apart.all_passes} == {"conditional", "text", "unconditional"}


@pytest.mark.parametrize("settings", [{"guidance_interval": (0.8, 0.2)}, {"audio_interval": (0.0, 1.5)}])
def test_an_interval_that_is_none_is_refused(ask, settings):
    with pytest.raises(ValueError, match="expected two shares of the steps"):
        ask(**settings)


def test_a_strength_of_the_sound_needs_a_sound(ask):
    from inference.pipeline import load_pipeline

    request = ask(audio_scale=3.0, video_length=5)
    with pytest.raises(UserError, match="--audio_scale: nothing here hears"):
        load_pipeline(request).plan(request)


def test_three_passes_of_a_generation_are_the_formula(ask_talking):
    """One Euler step from the same noise: the result moves as the velocities of the three passes say."""
    from inference import generate

    def made(text: float, audio: float, order: str = "omniavatar") -> torch.Tensor:
        return generate(ask_talking(guidance_scale=text, audio_scale=audio, guidance_order=order, infer_steps=1,
                                    sample_solver="euler")).latents[:, 1:]

    only, with_text, nothing = made(1.0, 1.0), made(1.0, 0.0), made(0.0, 0.0)
    expected = nothing + 3.0 * (with_text - nothing) + 2.0 * (only - with_text)
    torch.testing.assert_close(made(3.0, 2.0), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(made(3.0, 2.0), made(3.0, 2.0, "multitalk"), atol=1e-4)


@pytest.mark.parametrize(("mode", "share", "steps"), [
    # musubi-tuner prints A for a guided step and S for one without
    ("early", 0.7, "SSSAAAAAAA"), ("late", 0.7, "AAAAAAASSS"), ("early_late", 0.5, "SSAAAAASSS"),
    ("middle", 0.5, "AASSSSSAAA"), ("middle", 0.75, "AAASSSAAAA"), ("alternate", 0.5, "SASASASASA"),
    ("alternate", 0.75, "SAAASAAASA"), ("late", 0.0, "SSSSSSSSSS"), ("early", 1.0, "AAAAAAAAAA"),
    ("alternate", 1.0, "AAAAAAAAAA"), ("middle", 1.0, "AAAAAAAAAA"), ("late", 0.29, "AASSSSSSSS"),
])
def test_steps_without_guidance_are_musubis(mode, share, steps):
    found = "".join("A" if is_guided(Step(i, 10, 0.5), mode, share) else "S" for i in range(10))
    assert found == steps
    guidance = ClassifierFree(Scale(5.0, skip=(mode, share)))
    passes = [len(guidance.passes(Step(i, 10, 0.5))) for i in range(10)]
    assert passes == [2 if step == "A" else 1 for step in steps]


def test_without_guidance_three_passes_become_one():
    scales = [Scale(value, skip=("late", 0.5)) for value in (4.0, 3.0)]
    guidance = TextThenAudio(*scales, AUDIO)
    assert [len(guidance.passes(Step(i, 4, 0.5))) for i in range(4)] == [3, 3, 1, 1]
    assert value(guidance, Step(3, 4, 0.1)) == PREDICTIONS["conditional"].item()
