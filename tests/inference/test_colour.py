"""Colours brought back to a reference."""

import torch

from inference.colour import ease_seam, match_colours, match_latents

SOURCE = torch.Generator().manual_seed(3)
PICTURE = 0.6 * torch.rand(3, 32, 40, generator=SOURCE) - 0.3


def test_a_drifted_picture_gets_its_colours_back():
    drifted = (PICTURE * 0.7 + torch.tensor([0.2, 0.05, -0.1])[:, None, None])[:, None]
    matched = match_colours(drifted, PICTURE, 1.0)
    assert (drifted[:, 0] - PICTURE).abs().mean() > 0.1 and (matched[:, 0] - PICTURE).abs().mean() < 0.02
    half = match_colours(drifted, PICTURE, 0.5)
    torch.testing.assert_close(half, (drifted + matched) / 2, atol=1e-5, rtol=0)


def test_frames_of_the_right_colours_stay_and_strength_zero_changes_nothing():
    frames = PICTURE[:, None].flip(-1).repeat(1, 2, 1, 1)
    assert match_colours(frames, PICTURE, 0.0) is frames
    torch.testing.assert_close(match_colours(frames, PICTURE, 1.0), frames, atol=1 / 127.5, rtol=0)  # one 8-bit level


def test_a_flat_frame_is_shifted_and_not_blown_up():
    flat = torch.zeros(3, 1, 8, 8)
    matched = match_colours(flat, PICTURE, 1.0)
    assert matched.isfinite().all() and matched.std(dim=(2, 3)).max() < 1e-4


def test_latents_take_over_mean_and_spread_of_each_channel() -> None:
    draws = torch.Generator().manual_seed(2)
    latents = 3 * torch.randn(4, 5, 6, 7, generator=draws) + 2
    like = torch.randn(4, 9, 6, 7, generator=draws)
    matched = match_latents(latents, like, 1.0)
    axes = (1, 2, 3)
    torch.testing.assert_close(matched.mean(axes), like.mean(axes), rtol=0, atol=1e-5)
    torch.testing.assert_close(matched.std(axes), like.std(axes), rtol=1e-5, atol=0)
    assert match_latents(latents, like, 0.0) is latents
    torch.testing.assert_close(match_latents(latents, like, 0.5), (latents + matched) / 2)
    assert match_latents(latents, like[:, :0], 1.0) is latents


def test_small_differences_at_a_seam_fade_and_large_ones_stay() -> None:
    before = torch.zeros(3, 2, 2)
    frames = torch.zeros(3, 8, 2, 2)
    frames[:, :, 0, 0] = 0.02  # drawn a little anew
    frames[:, :, 1, 1] = 0.9  # has moved
    eased = ease_seam(frames, before, 4)
    steps = torch.diff(torch.cat((before[:, None], eased), dim=1)[0, :, 0, 0])
    torch.testing.assert_close(steps, torch.tensor([0.004] * 5 + [0.0] * 3), rtol=0, atol=4e-4)
    torch.testing.assert_close(eased[:, :, 1, 1], frames[:, :, 1, 1])
    assert torch.equal(eased[:, 4:], frames[:, 4:])
    assert ease_seam(frames, before, 0) is frames
    assert ease_seam(frames[:, :3], before, 12).shape == (3, 3, 2, 2)
