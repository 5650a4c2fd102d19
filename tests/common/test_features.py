"""The batch that conditions read."""

import torch

from common.features import FeatureBatch


def test_everything_in_a_batch_moves() -> None:
    batch = FeatureBatch({"x": {"y": torch.zeros(2), "z": [torch.zeros(1)]}}, 5, 25.0, given_mask=torch.zeros(1),
                         present={"x": torch.ones(1)})
    moved = batch.to("meta")
    assert moved.features["x"]["y"].is_meta and moved.features["x"]["z"][0].is_meta
    assert moved.given_mask is not None and moved.given_mask.is_meta and moved.present["x"].is_meta
    assert moved.given_latents is None and (moved.frames, moved.fps) == (5, 25.0)
