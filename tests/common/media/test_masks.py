"""Masks as shares of latent places and latent frames, against closed forms."""

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from common.media.masks import at_latent_frames, at_latent_size, box_mask, covers_nothing, mask_of
from common.speakers import audio_feature, parse_box, side_by_side, sound_need, speaker_of


def test_a_latent_place_has_the_mean_of_its_pixels() -> None:
    mask = torch.zeros(1, 16, 24)
    mask[0, :8, :8] = 1
    mask[0, :4, 8:16] = 1
    mask[0, 15, 23] = 0.5
    expected = torch.tensor([[[1, 0.5, 0], [0, 0, 0.5 / 64]]])
    assert torch.equal(at_latent_size(mask, (2, 3)), expected)


@pytest.mark.parametrize(("frame", "latent_frame"), [(0, 0), (1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_latent_frame_has_the_maximum_of_its_video_frames(frame: int, latent_frame: int) -> None:
    """Latent frame t > 0 lasts over the video frames 4t-3 … 4t, the grouping of Wan's VAE."""
    masks = torch.zeros(9, 1, 1)
    masks[frame] = 0.75
    assert at_latent_frames(masks, 9)[:, 0, 0].tolist() == [0.75 * (t == latent_frame) for t in range(3)]


def test_one_mask_holds_for_all_frames_and_a_picture_is_one_frame() -> None:
    mask = torch.rand(1, 2, 3)
    assert torch.equal(at_latent_frames(mask, 9), mask.repeat(3, 1, 1))
    assert torch.equal(at_latent_frames(mask, 1), mask)


def test_white_is_inside_and_grey_in_between() -> None:
    picture = np.array([[[255, 255, 255], [0, 0, 0], [51, 51, 51]]], np.uint8)
    torch.testing.assert_close(mask_of(picture), torch.tensor([[1, 0, 0.2]]))
    assert covers_nothing(mask_of(picture)[:, 1:]) and not covers_nothing(mask_of(picture))


def test_a_box_covers_whole_pixels_and_at_least_one() -> None:
    assert box_mask((0.25, 0.5, 0.75, 1), (8, 4)).nonzero().tolist() == [[y, x] for y in (2, 3) for x in range(2, 6)]
    assert box_mask((0.5, 0.5, 0.501, 0.501), (8, 4)).sum() == 1


def test_speakers_side_by_side_fill_the_picture_once() -> None:
    for count in (1, 2, 3):
        assert torch.equal(sum(box_mask(box, (48, 8)) for box in side_by_side(count)), torch.ones(8, 48))


def test_names_of_speakers() -> None:
    assert [(sound_need(n), audio_feature(n)) for n in (1, 2, 12)] == [
        ("sound", "audio"), ("voice2", "audio2"), ("voice12", "audio12")]
    assert [speaker_of(name) for name in ("audio", "sound", "audio2", "voice12", "audio1", "audio0", "text")] == [
        1, 1, 2, 12, None, None, None]
    with pytest.raises(ConfigError, match="^list:3 0,0,2,1: covers nothing"):
        parse_box("0,0,2,1", "list:3")
