"""The training step on velocity functions of two lines."""

import pytest
import torch

from training.step import Draws, StepBatch, draw, seed_dropouts, training_step
from training.timesteps import TimestepSettings, stratified_uniforms
from wan.conditions.given_frames import GivenFrames

UNIFORM = TimestepSettings(timestep_sampling="uniform")
SHAPE = (4, 3, 4, 6)


def knows_everything(latents, noise):
    return lambda x, sigma, timestep: noise - latents


def test_the_true_velocity_has_no_loss():
    latents, draws = torch.randn(2, *SHAPE), draw([0, 1], SHAPE, seed=1, epoch=1)
    result = training_step(knows_everything(latents, draws.noise), StepBatch(latents), draws, UNIFORM)
    assert result.loss.item() == 0


def test_model_sees_the_mix_and_a_thousand_sigma():
    latents, seen = torch.randn(2, *SHAPE), {}

    def velocity(x, sigma, timestep):
        seen.update(x=x, sigma=sigma, timestep=timestep)
        return torch.zeros_like(x)

    draws = Draws(torch.randn(2, *SHAPE), torch.tensor([0.25, 0.75]))
    result = training_step(velocity, StepBatch(latents), draws, UNIFORM)
    assert torch.equal(result.sigma, draws.uniform)
    assert torch.equal(seen["timestep"], 1000 * draws.uniform)
    assert torch.allclose(seen["x"][1], 0.25 * latents[1] + 0.75 * draws.noise[1])
    expected = ((draws.noise - latents) ** 2).flatten(1).mean(1)
    assert torch.allclose(result.sample_losses, expected)
    assert torch.allclose(result.loss, expected.sum())


def test_a_linear_toy_learns_the_best_velocity():
    """For data and noise from N(0, 1) the best v = a(sigma) x has a = (2 sigma - 1) / (sigma^2 + (1 - sigma)^2)."""
    a = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([a], lr=0.05)
    source = torch.Generator().manual_seed(0)
    for _ in range(150):
        latents = torch.randn(8, *SHAPE, generator=source)
        draws = Draws(torch.randn(8, *SHAPE, generator=source), torch.full((8,), 0.8))
        result = training_step(lambda x, sigma, timestep: a * x, StepBatch(latents), draws, UNIFORM)
        optimizer.zero_grad()
        (result.loss / 8).backward()
        optimizer.step()
    assert a.item() == pytest.approx(0.6 / 0.68, abs=0.03)


def test_weighting_scheme_weighs_samples():
    latents, draws = torch.randn(2, *SHAPE), draw([0, 1], SHAPE, seed=1, epoch=1)
    settings = TimestepSettings(timestep_sampling="uniform", weighting_scheme="sigma_sqrt")
    result = training_step(lambda x, sigma, timestep: 0 * x, StepBatch(latents), draws, settings)
    assert torch.allclose(result.weight, result.sigma**-2)
    assert torch.allclose(result.loss, (result.weight * result.sample_losses).sum())


def given_first_frame(mode):
    mask = torch.zeros(2, 1, *SHAPE[1:])
    mask[:, :, 0] = 1
    return GivenFrames(torch.full((2, *SHAPE), 5.0), mask, mode)


@pytest.mark.parametrize("mode", ["clean_same_t", "t0", "noised"])
def test_given_frames_enter_the_input_and_leave_the_loss(mode):
    latents, draws, seen = torch.randn(2, *SHAPE), draw([0, 1], SHAPE, seed=1, epoch=1), {}

    def wrong_on_given_frames(x, sigma, timestep):
        seen.update(x=x, timestep=timestep)
        velocity = draws.noise - latents
        velocity[:, :, 0] = 1e6
        return velocity

    batch = StepBatch(latents, given_first_frame(mode))
    result = training_step(wrong_on_given_frames, batch, draws, UNIFORM)
    assert result.loss.item() == 0
    if mode == "noised":
        level = result.sigma.reshape(-1, 1, 1, 1)
        assert torch.allclose(seen["x"][:, :, 0], (1 - level) * 5 + level * draws.noise[:, :, 0])
    else:
        assert (seen["x"][:, :, 0] == 5).all()
    assert torch.equal(seen["timestep"], 1000 * result.sigma)


def test_condition_weights_join_the_mask_of_given_frames():
    latents, draws = torch.zeros(2, *SHAPE), draw([0, 1], SHAPE, seed=1, epoch=1)
    weight = torch.zeros(2, 1, *SHAPE[1:])
    weight[:, :, :2] = 1  # frame 0 is given, so frame 1 alone is left
    batch = StepBatch(latents, given_first_frame("clean_same_t"), loss_weight=weight)
    result = training_step(lambda x, sigma, timestep: 0 * x, batch, draws, UNIFORM)
    assert torch.allclose(result.sample_losses, (draws.noise[:, :, 1] ** 2).flatten(1).mean(1))


def test_draws_depend_on_the_position_alone():
    """One process with a batch of four, or two with two each, see the same noise and the same noise levels."""
    whole = draw([8, 9, 10, 11], SHAPE, seed=7, epoch=3)
    halves = [draw(part, SHAPE, seed=7, epoch=3) for part in ([8, 9], [10, 11])]
    assert torch.equal(whole.noise, torch.cat([part.noise for part in halves]))
    assert torch.equal(whole.uniform, torch.cat([part.uniform for part in halves]))
    torch.manual_seed(123)
    assert torch.equal(whole.noise, draw([8, 9, 10, 11], SHAPE, seed=7, epoch=3).noise)
    assert len({value.item() for value in whole.uniform}) == 4
    for other in (draw([8], SHAPE, seed=8, epoch=3), draw([8], SHAPE, seed=7, epoch=4)):
        assert not torch.equal(other.noise[0], whole.noise[0])
        assert other.uniform[0] != whole.uniform[0]


def test_parts_of_a_batch_have_the_gradient_of_the_whole():
    weight = torch.randn(4, 1, 1, 1, requires_grad=True)
    latents = torch.randn(5, *SHAPE)

    def gradient(parts):
        weight.grad = None
        for positions in parts:
            draws = draw(positions, SHAPE, seed=0, epoch=1)
            batch = StepBatch(latents[positions], global_count=5)
            training_step(lambda x, s, t: weight * x, batch, draws, UNIFORM).loss.backward()
        return weight.grad.clone()

    assert torch.allclose(gradient([[0, 1, 2, 3, 4]]), gradient([[0, 1, 2], [3, 4]]), atol=1e-6)


def test_stratified_uniforms_are_taken_at_the_positions():
    uniforms = stratified_uniforms(16, 4, seed=0, epoch=1)
    draws = draw([3, 11], SHAPE, seed=0, epoch=1, uniforms=uniforms)
    assert draws.uniform.tolist() == [uniforms[3].item(), uniforms[11].item()]


def test_dropout_repeats_for_the_same_positions():
    values = []
    for positions in ([4, 5], [4, 5], [6, 7]):
        seed_dropouts(positions, seed=0, epoch=1)
        values.append(torch.nn.functional.dropout(torch.ones(64), 0.5))
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_half_precision_predictions_are_compared_in_float32():
    latents, draws = torch.randn(1, *SHAPE).bfloat16(), draw([0], SHAPE, seed=1, epoch=1)
    result = training_step(lambda x, sigma, timestep: x.bfloat16(), StepBatch(latents), draws, UNIFORM)
    assert result.loss.dtype == torch.float32
