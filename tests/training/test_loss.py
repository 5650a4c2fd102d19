"""Weights and means of the loss."""

import math

import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError, UserError
from training.loss import WEIGHTS, loss_weight, sample_losses, weighted_sum


def grid_sigma(timesteps):
    """musubi looks the weight up at the nearest of its 1000 noise levels; here it is taken at sigma itself."""
    return timesteps.round().clamp(1, 1000) / 1000


@pytest.mark.parametrize("scheme", ["sigma_sqrt", "cosmap"])
def test_weights_match_musubi_in_float32(golden, scheme):
    tensors = load_file(golden / "train_objective_io.safetensors")
    timesteps = tensors["weight.timesteps"].clone()
    timesteps[timesteps == 2.5] = 3  # the original's tie goes to the noisier level
    ours = loss_weight(scheme, grid_sigma(timesteps))
    assert torch.allclose(ours, tensors[f"weight.{scheme}.float32"], rtol=1e-6)


@pytest.mark.parametrize("scheme", ["none", "sigma_sqrt", "cosmap"])
def test_loss_matches_musubi(golden, scheme):
    tensors = load_file(golden / "train_objective_io.safetensors")
    losses = sample_losses(tensors["objective.pred"], tensors["objective.target"])
    weight = loss_weight(scheme, grid_sigma(tensors["objective.timesteps"]))
    ours = weighted_sum(losses, weight) / len(losses)
    assert ours.item() == pytest.approx(tensors[f"objective.loss.{scheme}"].item(), rel=1e-6)


def test_diffsynth_gauss_has_mean_one_and_ends_at_zero():
    for shift in (1.0, 5.0):
        grid = torch.arange(1, 1001) / 1000
        grid = shift * grid / (1 + (shift - 1) * grid)
        weight = loss_weight("diffsynth_gauss", grid, shift=shift)
        assert weight.mean().item() == pytest.approx(1, abs=1e-5)
        assert weight[-1].item() == pytest.approx(0, abs=1e-6)
    # shift 1: (1 - e^-1/2) over the mean of e^{-2(s-1/2)^2} - e^-1/2, an integral of the normal density
    mean = math.sqrt(math.pi / 2) * math.erf(math.sqrt(0.5)) - math.exp(-0.5)
    peak = loss_weight("diffsynth_gauss", torch.tensor([0.5])).item()
    assert peak == pytest.approx((1 - math.exp(-0.5)) / mean, rel=2e-3)


@pytest.mark.parametrize("scheme", WEIGHTS)
def test_every_weight_is_finite_and_never_negative(scheme):
    weight = loss_weight(scheme, torch.tensor([0.0, 1e-6, 0.5, 1.0]))
    assert weight.isfinite().all()
    assert (weight >= 0).all()


def test_unknown_scheme_names_the_nearest():
    with pytest.raises(ConfigError, match="nearest: 'cosmap'"):
        loss_weight("cosmapp", torch.tensor([0.5]))


def test_masked_places_do_not_count():
    prediction, target = torch.zeros(2, 3, 4, 2, 2), torch.ones(2, 3, 4, 2, 2)
    prediction[:, :, 0] = 100.0
    mask = torch.ones(2, 1, 4, 2, 2)
    mask[:, :, 0] = 0
    assert sample_losses(prediction, target, mask).tolist() == [1.0, 1.0]


def test_each_sample_has_its_own_mean():
    """A sample with a small mask weighs as much as a sample with a large one."""
    error = torch.stack([torch.full((1, 2, 2, 2), 2.0), torch.full((1, 2, 2, 2), 1.0)])
    mask = torch.ones(2, 1, 2, 2, 2)
    mask[0, :, :1] = 0
    losses = sample_losses(error, torch.zeros_like(error), mask)
    assert losses.tolist() == [4.0, 1.0]
    assert weighted_sum(losses, torch.ones(2)).item() / 2 == 2.5


def test_a_mask_that_leaves_nothing_is_an_error():
    error = torch.zeros(2, 1, 1, 2, 2)
    mask = torch.stack([torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)])
    with pytest.raises(UserError, match=r"sample \[1\].*nothing is left to learn"):
        sample_losses(error, error, mask)


def test_parts_of_uneven_processes_add_up_to_the_global_mean():
    losses, weights = torch.rand(5), torch.rand(5)
    parts = weighted_sum(losses[:2], weights[:2]) + weighted_sum(losses[2:], weights[2:])
    assert torch.allclose(parts / 5, (losses * weights).mean())
