"""Spoilt prefixes: only what is given beyond a picture, by place, and never the target."""

import torch

from tests.training.test_job import batch, job
from training.corruption import corrupted_prefix
from training.drawn import Place
from training.showing import Showing

LATENTS = torch.randn(4, 16, 6, 8, 8, generator=torch.Generator().manual_seed(3))
COUNTS = [0, 1, 4, 3]


def test_no_corruption_gives_the_latents_themselves() -> None:
    assert corrupted_prefix(LATENTS, COUNTS, Place(range(4), 1, 1), 0.0) is LATENTS


def test_only_given_frames_beyond_a_single_one_are_spoilt() -> None:
    spoilt = corrupted_prefix(LATENTS, COUNTS, Place(range(4), 1, 1), 0.5)
    changed = (spoilt != LATENTS).flatten(3).any(-1).any(1)
    assert changed.tolist() == [[False] * 6, [False] * 6, [True] * 4 + [False] * 2, [True] * 3 + [False] * 3]


def test_the_draws_hang_on_the_place_alone() -> None:
    whole = corrupted_prefix(LATENTS, COUNTS, Place([7, 8, 9, 10], 1, 2), 0.5)
    part = corrupted_prefix(LATENTS[2:], COUNTS[2:], Place([9, 10], 1, 2), 0.5)
    assert torch.equal(whole[2:], part)
    assert not torch.equal(whole[2:], corrupted_prefix(LATENTS[2:], COUNTS[2:], Place([9, 10], 1, 3), 0.5))


def test_strength_bounds_how_far_frames_move() -> None:
    def distance(strength: float) -> float:
        moved = [corrupted_prefix(LATENTS[2:3], [4], Place([p], 1, 1), strength) for p in range(60)]
        return float(torch.stack([(one - LATENTS[2:3])[:, :, :4].square().mean() for one in moved]).mean().sqrt())

    weak, strong = distance(0.1), distance(0.4)
    assert 0.02 < weak < 0.15 and 0.15 < strong < 0.5 and strong > 3 * weak


def test_a_step_is_given_spoilt_frames_and_learns_the_clean_clip() -> None:
    shown = {}
    for strength in (0.0, 0.5):
        one = job(showing=Showing(prefix_frames=(5,), prefix_corruption=strength))
        loaded = batch([0, 1])
        latents, features = one.shown_in_training(loaded, one.epoch(1, 0))
        assert torch.equal(latents, loaded.latents.float()), "the target"
        assert features.given_mask is not None and features.given_latents is not None
        assert features.given_mask[:, 0, :, 0, 0].tolist() == [[1, 1, 0]] * 2
        shown[strength] = features.given_latents[:, :, :2]
        assert torch.equal(shown[0.0], latents[:, :, :2])
    assert not torch.isclose(shown[0.0], shown[0.5]).all(dim=1).any(), "every given place is spoilt"
