"""Optimiser steps that are queued before their loss is known, and left out on the device where they must not be."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.line import DATA, Constant, Line
from training.ahead import Ahead
from training.guard import ExplodedLoss, Guard
from training.loop import Loop, LoopSettings, NonFiniteLoss
from training.optimizers import build_optimizer, step_unless
from training.parallel import GradientBucket, QueuedTotals
from training.processes import Processes

KINDS = [torch.optim.AdamW, torch.optim.Adam]


def trained(job: Line, kind: type, *, fused: bool = True, guard: Guard | None = None, **settings: Any) -> Loop:
    """A loop with a fused optimiser, before it runs."""
    return Loop(job, optimizer=kind(job.parameters, lr=0.05, fused=fused), schedule=Constant(),
                settings=LoopSettings(**settings), processes=Processes(), guard=guard)


def state_of(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in {**optimizer.state[weight], "weight": weight.detach()}.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_a_step_that_waits(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    queued, waits = Line(DATA, 2), Line(DATA, 2)
    early = trained(queued, kind, steps=7, max_grad_norm=0.5, guard=Guard(100.0))
    early.run()
    monkeypatch.setattr("training.loop.step_unless", lambda optimizer, refused: False)
    late = trained(waits, kind, steps=7, max_grad_norm=0.5, guard=Guard(100.0))
    late.run()
    one, other = state_of(early.optimizer, queued.weight), state_of(late.optimizer, waits.weight)
    assert one["step"] == 7 and all(torch.equal(one[name], other[name]) for name in one)


def test_the_step_is_queued_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    read = QueuedTotals.read
    monkeypatch.setattr(QueuedTotals, "read", lambda self: events.append("read") or read(self))
    for kind, expected in ((torch.optim.AdamW, ["step", "read"]), (torch.optim.SGD, ["read", "step"])):
        job = Line(DATA)
        loop = trained(job, kind, steps=1)
        loop.optimizer.register_step_post_hook(lambda *_: events.append("step"))
        loop.run()
        assert events == expected
        events.clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), 1e30])
def test_a_broken_step_leaves_weights_averages_and_counts(kind: type, broken: float) -> None:
    job = Line([*DATA, *DATA, *DATA, broken, 0.1])
    loop = trained(job, kind, steps=26, guard=Guard(100.0))
    loop.total_steps = 24
    loop.run()
    before = state_of(loop.optimizer, job.weight)
    loop.total_steps = 26
    with pytest.raises((NonFiniteLoss, ExplodedLoss), match="step 25: .*the weights were not touched"):
        loop.run()
    after = state_of(loop.optimizer, job.weight)
    assert before["step"] == 24 and all(torch.equal(before[name], after[name]) for name in before)
    assert loop.is_between_steps and loop.state.step == 24
    assert not hasattr(loop.optimizer, "found_inf")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"))])
def test_the_device_takes_a_step_or_leaves_it(device: str) -> None:
    weight = nn.Parameter(torch.ones(3, device=device))
    weight.grad = torch.ones(3, device=device)
    optimizer = torch.optim.AdamW([weight], lr=0.5, fused=True)
    for refused, moved in ((0.0, True), (1.0, False), (0.0, True)):
        before, steps = weight.detach().clone(), float(optimizer.state[weight].get("step", 0))
        assert step_unless(optimizer, torch.tensor(refused, device=device))
        assert torch.equal(weight, before) is not moved
        assert float(optimizer.state[weight]["step"]) == steps + moved


@pytest.mark.parametrize(("value", "limits", "is_refused"), [
    (1.0, (math.inf, math.inf), False), (1.0, (1.0, math.inf), False), (1.1, (1.0, math.inf), True),
    (1.0, (math.inf, 0.5), True), (float("nan"), (math.inf, math.inf), True), (math.inf, (math.inf, math.inf), True),
    (-math.inf, (math.inf, math.inf), True), (-1.0, (math.inf, math.inf), False), (-1.0, (-2.0, math.inf), True)])
def test_a_step_is_refused_by_its_limits(value: float, limits: tuple[float, float], is_refused: bool) -> None:
    weight = nn.Parameter(torch.ones(1))
    bucket = GradientBucket([weight], Processes())
    assert weight.grad is not None
    weight.grad.fill_(1.0)
    bucket.add_loss(torch.tensor(value), 1)
    queued = bucket.queue_reduce(limits=limits, also=[torch.tensor([7.0])])
    totals = queued.read()
    assert totals.is_refused is is_refused and queued.refused.item() == is_refused and totals.also == (7.0,)


def test_a_gradient_that_is_no_number_is_refused() -> None:
    weight = nn.Parameter(torch.ones(2))
    bucket = GradientBucket([weight], Processes())
    assert weight.grad is not None
    weight.grad[1] = float("nan")
    bucket.add_loss(torch.tensor(1.0), 1)
    assert bucket.reduce().is_refused


@pytest.mark.parametrize(("name", "arguments"), [("adamw", ["fused=False"]), ("sgd", ["fused=True"]), ("prodigy", []),
                                                 ("adamw8bit", [])])
def test_others_are_left_to_wait(name: str, arguments: list[str]) -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = build_optimizer(name, [{"params": [weight]}], learning_rate=1.0, arguments=arguments)
    assert not step_unless(optimizer, torch.zeros(())) and weight.tolist() == [1.0, 1.0]


def test_of_several_groups_all_must_be_fused() -> None:
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW([{"params": [weights[0]], "fused": True}, {"params": [weights[1]], "fused": False}])
    assert not step_unless(optimizer, torch.zeros(())) and not optimizer.state


def test_a_class_of_the_same_name_from_elsewhere_is_left_to_wait() -> None:
    class AdamW(torch.optim.AdamW):
        """May look at nothing that says whether a step is to be left out."""

    weight = nn.Parameter(torch.ones(2))
    assert not step_unless(AdamW([weight], fused=True), torch.zeros(()))


class Broken(RuntimeError):
    """Something that a step does not expect."""


def breaks(*_: object) -> None:
    raise Broken


@pytest.mark.parametrize(("kind", "place", "is_between"), [
    (torch.optim.AdamW, "look_ahead", True), (torch.optim.SGD, "look_ahead", True),
    (torch.optim.AdamW, "before the step", False), (torch.optim.SGD, "before the step", False),
    (torch.optim.AdamW, "behind the step", False), (torch.optim.SGD, "behind the step", False),
    (torch.optim.AdamW, "read", False), (torch.optim.SGD, "read", True),
    (torch.optim.AdamW, "schedule", False), (torch.optim.SGD, "schedule", False)])
def test_weights_are_known_to_be_between_two_steps_or_not(kind: type, place: str, is_between: bool,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    loop = trained(Line(DATA), kind, steps=2)
    if place == "look_ahead":
        monkeypatch.setattr(Ahead, "look_ahead", breaks)
    elif place == "before the step":
        loop.optimizer.register_step_pre_hook(breaks)
    elif place == "behind the step":
        loop.optimizer.register_step_post_hook(breaks)
    elif place == "read":
        monkeypatch.setattr(QueuedTotals, "read", breaks)
    else:
        monkeypatch.setattr(loop.schedule, "step", breaks)
    with pytest.raises(Broken):
        loop.run()
    assert loop.is_between_steps is is_between and not hasattr(loop.optimizer, "found_inf")


def test_a_median_of_zero_judges_nothing() -> None:
    guard = Guard(10.0)
    for _ in range(Guard.SMALLEST):
        guard.count(0.0, 2.0)
    assert guard.limits() == (math.inf, 200.0) and not guard.finds(1.0, 1.0)


def test_only_the_last_steps_judge() -> None:
    guard = Guard(10.0)
    for step in range(3 * Guard.WINDOW):
        guard.count(1.0 if step < 2 * Guard.WINDOW else 3.0, 1.0)
    assert guard.limits() == (30.0, 100.0)


def test_a_device_whose_kernels_may_not_leave_a_step_out_is_left_to_wait() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = torch.optim.AdamW([weight], fused=True)
    assert not step_unless(optimizer, torch.zeros((), device="meta")) and not optimizer.state
    assert step_unless(optimizer, torch.zeros(()))
