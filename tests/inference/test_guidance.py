"""Guidance on numbers that can be checked by hand."""

import torch

from inference.guidance import ClassifierFree, Step

STEP = Step(0, 1, 1.0)


def test_scale_one_runs_one_pass_and_changes_nothing():
    guidance = ClassifierFree(1.0, frozenset({"audio"}))
    assert [one.name for one in guidance.all_passes] == ["conditional"]
    velocity = torch.randn(3)
    assert guidance.combine({"conditional": velocity}, STEP) is velocity


def test_two_passes_extrapolate_from_the_negative_one():
    guidance = ClassifierFree(4.5)
    combined = guidance.combine({"conditional": torch.tensor(3.0), "unconditional": torch.tensor(1.0)}, STEP)
    assert combined.item() == 1 + 4.5 * 2


def test_the_negative_pass_has_the_negative_text_and_lacks_what_is_dropped():
    conditional, unconditional = ClassifierFree(4.5, frozenset({"audio"})).passes(STEP)
    assert not conditional.negative_text and conditional.without == frozenset()
    assert unconditional.negative_text and unconditional.without == {"audio"}
