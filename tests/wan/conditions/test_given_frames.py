"""Given frames enter as their mode says and leave the loss."""

import pytest
import torch

from common.errors import ConditionError
from wan.conditions.given_frames import GivenFrames, Mode, apply_given, given_timestep, loss_mask

NOISY = torch.full((2, 3, 4, 2, 2), 5.0)
CLEAN = torch.arange(96.0).reshape(2, 3, 4, 2, 2)


def _given(mode: Mode = "clean_same_t") -> GivenFrames:
    mask = torch.zeros(2, 1, 4, 2, 2)
    mask[0, :, :1] = 1
    mask[1, :, :3] = 1
    return GivenFrames(CLEAN, mask, mode)


@pytest.mark.parametrize("mode", ["clean_same_t", "t0"])
def test_clean_modes_write_the_latents_at_every_noise_level(mode: Mode) -> None:
    found = apply_given(NOISY, _given(mode), 0.7)
    assert torch.equal(found[0, :, :1], CLEAN[0, :, :1])
    assert torch.equal(found[1, :, :3], CLEAN[1, :, :3])
    assert (found[0, :, 1:] == 5).all() and (found[1, :, 3:] == 5).all()


def test_noised_mode_mixes_at_the_level_of_each_sample() -> None:
    noise = torch.randn(2, 3, 4, 2, 2)
    sigma = torch.tensor([0.25, 0.5])
    found = apply_given(NOISY, _given("noised"), sigma, noise)
    torch.testing.assert_close(found[0, :, :1], 0.75 * CLEAN[0, :, :1] + 0.25 * noise[0, :, :1])
    torch.testing.assert_close(found[1, :, :3], 0.5 * CLEAN[1, :, :3] + 0.5 * noise[1, :, :3])
    assert (found[0, :, 1:] == 5).all()


def test_noised_mode_without_noise_is_refused() -> None:
    with pytest.raises(ConditionError, match="need the clip's noise"):
        apply_given(NOISY, _given("noised"), 0.5)


def test_nothing_given_leaves_all_as_it_is() -> None:
    assert apply_given(NOISY, None, 0.5) is NOISY
    assert loss_mask(None) is None
    timestep = torch.tensor([500.0, 900.0])
    assert given_timestep(timestep, None) is timestep


def test_given_frames_are_out_of_the_loss() -> None:
    mask = loss_mask(_given())
    assert mask is not None
    assert mask[:, 0, :, 0, 0].tolist() == [[0, 1, 1, 1], [0, 0, 0, 1]]


def test_only_mode_t0_gives_tokens_timesteps_of_their_own() -> None:
    timestep = torch.tensor([500.0, 900.0])
    assert given_timestep(timestep, _given()) is timestep
    assert given_timestep(timestep, _given("t0")).tolist() == [[0, 500, 500, 500], [0, 0, 0, 900]]
