"""Schedules against transformers' own and against closed forms."""

import math

import pytest
import torch

from common.errors import ConfigError
from training.schedules import (
    SCHEDULES,
    ScheduleSettings,
    build_custom_scheduler,
    build_scheduler,
    factor_at,
    parse_steps,
)

TOTAL, WARMUP = 200, 20
LIKE_TRANSFORMERS = {
    "constant_with_warmup": ({}, {}),
    "linear": ({}, {}),
    "cosine": ({}, {}),
    "cosine_with_restarts": ({"num_cycles": 3}, {"num_cycles": 3}),
    "polynomial": ({"power": 2.0}, {"power": 2.0}),
    "inverse_sqrt": ({"timescale": 50}, {"timescale": 50}),
    "cosine_with_min_lr": ({"min_lr_ratio": 0.1}, {"min_lr_rate": 0.1}),
    "warmup_stable_decay": ({"min_lr_ratio": 0.1, "decay_steps": 60},
                            {"min_lr_ratio": 0.1, "num_decay_steps": 60, "num_stable_steps": 120}),
}


def rates(scheduler, optimizer, steps):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def an_optimizer(lr=1e-3):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize("name", LIKE_TRANSFORMERS)
def test_schedule_equals_transformers(name):
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

    extra, theirs = LIKE_TRANSFORMERS[name]
    settings = ScheduleSettings(name, TOTAL, WARMUP, learning_rate=1e-3, **extra)
    reference = an_optimizer()
    arguments = {"num_warmup_steps": WARMUP, **theirs}
    if name not in ("constant_with_warmup", "inverse_sqrt", "warmup_stable_decay"):
        arguments["num_training_steps"] = TOTAL
    expected = rates(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)](reference, **arguments), reference, TOTAL)
    optimizer = an_optimizer()
    ours = rates(build_scheduler(optimizer, settings), optimizer, TOTAL)
    assert ours == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_rex_follows_its_formula():
    settings = ScheduleSettings("rex", TOTAL, WARMUP)
    assert factor_at(WARMUP, settings) == pytest.approx(1)
    assert factor_at(TOTAL, settings) == pytest.approx(0.01)
    assert factor_at(110, settings) == pytest.approx(0.01 + 0.99 * 0.5 / 0.55)


def test_piecewise_constant_follows_its_rules():
    settings = ScheduleSettings("piecewise_constant", TOTAL, step_rules="1:10,0.1:20,0.005")
    assert [factor_at(step, settings) for step in (0, 9, 10, 19, 20, 150)] == [1, 1, 0.1, 0.1, 0.005, 0.005]
    with pytest.raises(ConfigError, match="not of the form"):
        build_scheduler(an_optimizer(), ScheduleSettings("piecewise_constant", TOTAL, step_rules="1:ten"))


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_and_stays_between_zero_and_one(name):
    """Constant with warm-up just works too (musubi-tuner raises there)."""
    extra = {"min_lr_ratio": 0.2} if name == "cosine_with_min_lr" else {}
    settings = ScheduleSettings(name, TOTAL, WARMUP, learning_rate=1e-3, step_rules="1:50,0.5", **extra)
    factors = [factor_at(step, settings) for step in range(TOTAL + 20)]
    assert factors[:WARMUP] == pytest.approx([step / WARMUP for step in range(WARMUP)])
    assert factors[WARMUP] == pytest.approx(1)
    assert all(0 <= factor <= 1 and math.isfinite(factor) for factor in factors)


def test_all_groups_keep_their_ratio():
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1e-3}, {"params": [b], "lr": 4e-3}])
    scheduler = build_scheduler(optimizer, ScheduleSettings("cosine", 10))
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[1]["lr"] == pytest.approx(4 * optimizer.param_groups[0]["lr"])


def test_scheduler_resumes_at_its_step():
    first = an_optimizer()
    scheduler = build_scheduler(first, ScheduleSettings("cosine", 50, 5))
    all_rates = rates(scheduler, first, 50)
    second = an_optimizer()
    resumed = build_scheduler(second, ScheduleSettings("cosine", 50, 5))
    rates(resumed, second, 20)
    third = an_optimizer()
    third.load_state_dict(second.state_dict())
    again = build_scheduler(third, ScheduleSettings("cosine", 50, 5))
    again.load_state_dict(resumed.state_dict())
    third.load_state_dict(second.state_dict())
    assert rates(again, third, 30) == all_rates[20:]


@pytest.mark.parametrize(("value", "steps"), [(100, 100), ("100", 100), (0, 0), (None, 0), (0.1, 80), ("10%", 80),
                                              ("0.5", 400), ("1", 1), ("2.0", 2), ("100%", 800)])
def test_steps_are_counts_or_shares(value, steps):
    assert parse_steps(value, 800) == steps


@pytest.mark.parametrize("value", ["ten", "120%", -1, "2.5", "%"])
def test_wrong_steps_are_refused(value):
    with pytest.raises(ConfigError, match="number of steps"):
        parse_steps(value, 800)


@pytest.mark.parametrize(("settings", "message"), [
    (ScheduleSettings("cosin", 10), "nearest: 'cosine'"),
    (ScheduleSettings("linear", 10, 20), "more than the 10 steps"),
    (ScheduleSettings("cosine_with_min_lr", 10), "needs lr_scheduler_min_lr_ratio"),
])
def test_wrong_schedules_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_scheduler(an_optimizer(), settings)


def test_any_scheduler_class_is_built_by_its_path():
    optimizer = an_optimizer()
    scheduler = build_custom_scheduler(optimizer, "StepLR", ["step_size=3", "gamma=0.5"])
    assert rates(scheduler, optimizer, 4) == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4])
    with pytest.raises(ConfigError, match=r"no argument 'gama' \(nearest: 'gamma'\)"):
        build_custom_scheduler(optimizer, "torch.optim.lr_scheduler.StepLR", ["step_size=3", "gama=0.5"])


def test_a_scheduler_that_wants_a_measurement_is_refused():
    with pytest.raises(ConfigError, match="ReduceLROnPlateau' wants to be told metrics"):
        build_custom_scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), "ReduceLROnPlateau", [])
