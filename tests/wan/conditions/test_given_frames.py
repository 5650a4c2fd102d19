"""Given frames enter as their mode says and leave the loss."""

import pytest
import torch

from common.errors import ConditionError
from common.features import FeatureBatch
from tests.tiny_dit import tiny_variant
from wan.conditions.given_frames import (
    GivenFrames,
    Mode,
    apply_given,
    given_timestep,
    loss_mask,
    with_first_frame_given,
    with_prefix_given,
)
from wan.conditions.prepare import given_by, prepare_conditions
from wan.conditions.registry import build_condition

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


def test_given_frames_are_each_samples_own_number() -> None:
    latents = torch.randn(3, 4, 3, 2, 2)
    batch = with_prefix_given(FeatureBatch({}, frames=9, fps=25.0), latents, [0, 2, 1],
                              torch.tensor([False, False, True]))
    mask = torch.zeros(3, 1, 3, 2, 2)
    mask[1, :, :2] = mask[2, :, :1] = 1
    assert batch.given_mask is not None and torch.equal(batch.given_mask, mask)
    assert batch.given_latents is not None
    assert torch.equal(batch.given_latents, torch.where(mask > 0, latents, torch.zeros(())))
    assert batch.first_is_still is not None and batch.first_is_still.tolist() == [False, False, True]


def test_a_picture_is_the_first_frame_of_any_number() -> None:
    picture, is_still = torch.randn(2, 4, 1, 2, 2), torch.tensor([True, True])
    batch = with_first_frame_given(FeatureBatch({}, frames=9, fps=25.0), picture, 3, is_still)
    longer = torch.cat((picture, torch.randn(2, 4, 2, 2, 2)), dim=2)
    same = with_prefix_given(FeatureBatch({}, frames=9, fps=25.0), longer, [1, 1], is_still)
    for name in ("given_latents", "given_mask", "first_is_still"):
        assert torch.equal(getattr(batch, name), getattr(same, name)), name


@pytest.mark.parametrize("name", ["omniavatar_add", "reference_channels"])
@pytest.mark.parametrize("mode", ["clean_same_t", "t0", "noised"])
def test_how_given_frames_enter_is_a_setting_that_is_saved(name: str, mode: str) -> None:
    condition = build_condition(name, {"given": mode}, tiny_variant())
    again = build_condition(name, condition.settings_text(), tiny_variant())
    features = {"audio": {"states": torch.zeros(1, 9, 13, 768)},
                "reference_latents": {"latents": torch.zeros(1, 16, 1, 4, 6)}}
    batch = with_prefix_given(FeatureBatch(features, frames=9, fps=25.0), torch.randn(1, 16, 3, 4, 6), [2],
                              torch.tensor([False]))
    given = given_by(prepare_conditions({name: again}, batch, (3, 4, 6)))
    assert given is not None and given.mode == mode


@pytest.mark.parametrize("name", ["omniavatar_add", "reference_channels"])
def test_an_unknown_mode_names_the_three(name: str) -> None:
    with pytest.raises(ConditionError, match="given = 'clean' is unknown. Use clean_same_t .*, t0 .* or noised"):
        build_condition(name, {"given": "clean"}, tiny_variant())
    assert build_condition(name, {}, tiny_variant()).settings.given == "clean_same_t"
