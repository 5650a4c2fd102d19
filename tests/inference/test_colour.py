"""Colours brought back to a reference."""

import torch

from inference.colour import match_colours

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
