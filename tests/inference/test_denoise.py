"""The sampling loop on toy velocities."""

import pytest
import torch

from common.errors import UserError
from common.flow import mix
from inference.denoise import Sampling, denoise
from inference.guidance import ClassifierFree

NOISE = torch.randn(1, 2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def test_every_step_runs_the_passes_of_guidance_and_combines_them():
    calls = []

    def velocity(x, sigma, timestep, one):
        calls.append((one.name, sigma))
        return x if one.name == "conditional" else 0.5 * x

    denoise(velocity, NOISE, Sampling("euler", 4, 3.0), guidance=ClassifierFree(2.0))
    assert [name for name, _ in calls] == ["conditional", "unconditional"] * 4
    calls.clear()
    denoise(velocity, NOISE, Sampling("euler", 4, 3.0), guidance=ClassifierFree(1.0))
    assert [name for name, _ in calls] == ["conditional"] * 4


@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_given_frames_are_clean_at_every_call_and_at_the_end(solver):
    given = torch.full((1, 2, 1, 4, 4), 0.25)

    def write_given(sample, sigma):
        return torch.cat([given, sample[:, :, 1:]], dim=2)

    def velocity(x, sigma, timestep, one):
        assert torch.equal(x[:, :, :1], given)
        return x

    sample = denoise(velocity, NOISE, Sampling(solver, 5, 5.0), guidance=ClassifierFree(1.0), write_given=write_given)
    assert torch.equal(sample[:, :, :1], given)


def test_given_frames_may_be_noised_to_the_step_that_follows():
    clean = torch.zeros(1, 2, 1, 4, 4)

    def write_given(sample, sigma):
        return torch.cat([mix(clean, NOISE[:, :, :1], sigma), sample[:, :, 1:]], dim=2)

    def velocity(x, sigma, timestep, one):
        torch.testing.assert_close(x[:, :, :1], sigma * NOISE[:, :, :1])
        return x

    sample = denoise(velocity, NOISE, Sampling("euler", 4, 5.0), guidance=ClassifierFree(1.0), write_given=write_given)
    assert torch.equal(sample[:, :, :1], clean)


def test_watch_sees_each_step_in_order_with_its_sigma():
    seen = []
    denoise(lambda x, sigma, timestep, one: x, NOISE, Sampling("euler", 3, 1.0), guidance=ClassifierFree(1.0),
            watch=lambda step, sample: seen.append((step.index, step.count, step.sigma, sample.shape)))
    assert [row[:2] for row in seen] == [(0, 3), (1, 3), (2, 3)]
    assert seen[0][2] == 1.0 and seen[2][3] == NOISE.shape


def test_a_nan_stops_the_run_at_its_step():
    def velocity(x, sigma, timestep, one):
        return x * (float("nan") if sigma <= 0.5 else 1.0)

    with pytest.raises(UserError, match="step 3 of 4 gave NaN"):
        denoise(velocity, NOISE, Sampling("euler", 4, 1.0), guidance=ClassifierFree(1.0))


def test_a_nan_of_the_last_step_is_not_returned():
    def velocity(x, sigma, timestep, one):
        return x * (float("inf") if sigma < 0.3 else 1.0)

    with pytest.raises(UserError, match="step 4 of 4 gave NaN"):
        denoise(velocity, NOISE, Sampling("euler", 4, 1.0), guidance=ClassifierFree(1.0))


def test_listed_times_are_what_the_model_is_called_with():
    seen = []

    def velocity(x, sigma, timestep, one):
        seen.append((one.name, sigma, timestep))
        return x

    sampling = Sampling("lcm", 3, 5.0, times=(1000.0, 500.0, 250.0))
    drawn = []
    denoise(velocity, NOISE, sampling, guidance=ClassifierFree(1.0),
            fresh=lambda step: drawn.append(step) or torch.zeros_like(NOISE))
    assert seen == [("conditional", sigma, 1000 * sigma) for sigma in sampling.schedule.sigmas[:-1]]
    assert drawn == [0, 1], "none after the last step"
