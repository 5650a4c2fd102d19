"""What a trained file says about its making."""

from types import SimpleNamespace
from typing import Any

import torch

from training.outcome import averaged, usual_fps


class HalfScheduleFree(torch.optim.SGD):
    """Shows its weights scaled by 1/3 in eval mode, and computes them back, which rounds."""

    def eval(self) -> None:
        self.param_groups[0]["params"][0].data.mul_(1 / 3)

    def train(self) -> None:
        self.param_groups[0]["params"][0].data.div_(1 / 3)


def test_looking_at_averaged_weights_leaves_the_trained_ones_bit_equal() -> None:
    weight = torch.nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    before, optimizer = weight.detach().clone(), HalfScheduleFree([weight], lr=0.1)
    optimizer.eval()
    optimizer.train()
    assert not torch.equal(weight, before), "this optimiser does not round; the test proves nothing"
    with torch.no_grad():
        weight.copy_(before)
    with averaged(optimizer):
        assert torch.equal(weight, before * (1 / 3))
    assert torch.equal(weight, before)
    with averaged(torch.optim.SGD([weight], lr=0.1)):
        assert torch.equal(weight, before)


def plan(*clips: tuple[str, float, bool], conditions: bool = False) -> Any:
    """(kind, frames a second, has sound) of each clip."""
    items = [SimpleNamespace(kind=kind, fps=fps, sound="sound" if heard else None) for kind, fps, heard in clips]
    return SimpleNamespace(clips=[SimpleNamespace(item=item) for item in items],
                           conditions={"omniavatar_add": None} if conditions else {})


def test_pictures_do_not_decide_the_frame_rate_of_videos() -> None:
    pictures = [("image", 16.0, False)] * 5
    assert usual_fps(plan(*pictures, ("video", 25.0, True))) == 25.0
    assert usual_fps(plan(*pictures)) == 16.0


def test_where_a_condition_hears_clips_with_sound_decide() -> None:
    clips = (("video", 16.0, False), ("video", 16.0, False), ("video", 25.0, True))
    assert usual_fps(plan(*clips)) == 16.0
    assert usual_fps(plan(*clips, conditions=True)) == 25.0
