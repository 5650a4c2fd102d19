"""The solvers against the original schedulers' outputs, and against exact solutions."""

import math

import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError
from inference.solvers import SCHEDULES, SOLVERS, find_solver, listed_schedule

CASES = [(name, steps, shift) for name in ("unipc", "dpm++") for steps, shift in ((4, 3.0), (10, 5.0), (25, 8.0))]


@pytest.mark.parametrize(("name", "steps", "shift"), CASES)
def test_sample_and_tables_equal_the_original_scheduler(golden, name, steps, shift):
    io = load_file(golden / "solvers_io.safetensors")
    weight = io["velocity_weight"]

    def velocity(x, sigma, timestep):
        return torch.einsum("oc,bcthw->bothw", weight, torch.tanh(x)) * (0.5 + timestep / 1000) - 0.3 * x

    schedule = SCHEDULES[name](steps, shift)
    torch.testing.assert_close(torch.tensor(schedule.sigmas), io[f"{name}.{steps}.{shift}.sigmas"], atol=2e-6, rtol=0)
    assert list(schedule.timesteps) == io[f"{name}.{steps}.{shift}.timesteps"].tolist()
    sample = SOLVERS[name](velocity, io[f"unipc.{steps}.{shift}.noise"], steps=steps, shift=shift)
    torch.testing.assert_close(sample, io[f"{name}.{steps}.{shift}.sample"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_a_constant_data_prediction_is_reached_exactly(name, steps):
    data = torch.full((2, 3), 0.7, dtype=torch.float64)

    def velocity(x, sigma, timestep):
        return (x - data) / sigma

    sample = SOLVERS[name](velocity, torch.randn(2, 3, dtype=torch.float64), steps=steps, shift=5.0)
    torch.testing.assert_close(sample, data)


def gaussian_error(name: str, steps: int) -> float:
    """Error on data ~ N(0, s^2), whose velocity and flow map are known in closed form."""
    deviation = 0.5

    def variance(sigma):
        return (1 - sigma) ** 2 * deviation**2 + sigma**2

    def velocity(x, sigma, timestep):
        return x * (sigma - (1 - sigma) * deviation**2) / variance(sigma)

    start = SCHEDULES[name](steps, 1.0).sigmas[0]
    noise = torch.tensor(1.3, dtype=torch.float64)
    exact = noise.item() * math.sqrt(variance(0.0) / variance(start))
    return abs(SOLVERS[name](velocity, noise, steps=steps, shift=1.0).item() - exact)


def test_second_order_solvers_beat_euler_and_errors_fall_with_steps():
    for name in ("euler", "dpm++", "unipc"):
        assert gaussian_error(name, 80) < gaussian_error(name, 20) / 3
    for steps in (10, 20, 40, 80):
        assert gaussian_error("dpm++", steps) < gaussian_error("euler", steps) / 5
        assert gaussian_error("unipc", steps) < gaussian_error("dpm++", steps)


def test_euler_gives_the_model_exactly_a_thousand_sigma():
    times = []

    def velocity(x, sigma, timestep):
        times.append((sigma, timestep))
        return x

    SOLVERS["vanilla"](velocity, torch.ones(1), steps=7, shift=3.0)
    assert all(timestep == 1000 * sigma for sigma, timestep in times)
    assert len(times) == 7 and times[0] == (1.0, 1000.0)


def test_listed_times_are_the_sigmas_of_lightx2v():
    """Shift 5 by hand: 5s / (1 + 4s); other times by the table of 1000 shifted sigmas that LightX2V indexes."""
    four = listed_schedule((1000, 750, 500, 250), 5.0)
    assert four.sigmas == pytest.approx((1.0, 15 / 16, 5 / 6, 5 / 8, 0.0), abs=1e-15)
    assert four.timesteps == pytest.approx((1000.0, 937.5, 2500 / 3, 625.0), abs=1e-12)
    table = torch.linspace(1.0, 0.0, 1001)[:-1]
    table = 3 * table / (1 + 2 * table)
    times = (999, 757, 522, 3)
    picked = [table[1000 - time].item() for time in times]
    assert listed_schedule(times, 3.0).sigmas[:-1] == pytest.approx(picked, abs=1e-6)


def test_euler_along_listed_times_equals_the_written_out_steps():
    sample = SOLVERS["euler"](lambda x, sigma, timestep: x * timestep / 1000, torch.tensor(1.0, dtype=torch.float64),
                              steps=4, shift=5.0, times=(1000, 750, 500, 250))
    sigmas = (1.0, 15 / 16, 5 / 6, 5 / 8, 0.0)
    expected = math.prod(1 + (after - now) * now for now, after in zip(sigmas, sigmas[1:], strict=False))
    assert sample.item() == pytest.approx(expected, abs=1e-14)
    evenly = SOLVERS["euler"](lambda x, sigma, timestep: x * sigma, torch.ones(2), steps=4, shift=5.0)
    assert torch.equal(evenly, SOLVERS["euler"](lambda x, sigma, timestep: x * sigma, torch.ones(2), steps=1, shift=5.0,
                                                times=(1000, 750, 500, 250))), "the even times, written out"


def test_lcm_goes_to_the_data_and_back_with_fresh_noise():
    drawn = {0: 0.5, 1: -2.0}
    sample = SOLVERS["lcm"](lambda x, sigma, timestep: 0.1 * x, torch.tensor([3.0], dtype=torch.float64), steps=3,
                            shift=1.0, times=(1000, 500, 250), fresh=lambda i: torch.tensor([drawn[i]]))
    first = 0.5 * (3.0 - 1.0 * 0.3) + 0.5 * 0.5
    second = 0.75 * (first - 0.5 * 0.1 * first) + 0.25 * -2.0
    assert sample.item() == pytest.approx(second - 0.25 * 0.1 * second, abs=1e-14)


@pytest.mark.parametrize("name", SOLVERS)
def test_on_step_sees_every_step_and_may_replace_the_sample(name):
    seen = []

    def replace(index, sample):
        seen.append(index)
        return torch.zeros_like(sample) if index == 4 else None

    sample = SOLVERS[name](lambda x, sigma, timestep: x, torch.ones(3), steps=5, shift=2.0, on_step=replace)
    assert seen == [0, 1, 2, 3, 4]
    assert sample.abs().max() == 0


def test_a_replaced_part_does_not_disturb_the_rest():
    """Solvers act element by element: writing frames back changes other frames only through the velocity."""
    noise = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))

    def velocity(x, sigma, timestep):
        return torch.tanh(x) * (0.3 + sigma)

    def write_back(index, sample):
        return torch.cat([torch.full_like(sample[:1], 9.0), sample[1:]])

    for solve in SOLVERS.values():
        plain = solve(velocity, noise, steps=6, shift=3.0)
        given = solve(velocity, noise, steps=6, shift=3.0, on_step=write_back)
        assert torch.equal(given[1:], plain[1:])
        assert (given[0] == 9.0).all()


def test_wrong_names_and_step_counts_are_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="nearest: 'unipc'"):
        find_solver("unipcc")
    with pytest.raises(ConfigError, match="at least 1"):
        SOLVERS["euler"](lambda x, s, t: x, torch.ones(1), steps=0, shift=1.0)
