"""The channels and CLIP tokens of image-to-video, first+last frame and Fun-Control models."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConditionError
from common.features import FeatureBatch
from tests.tiny_dit import tiny_variant
from wan.conditions.image_latent import (
    control_channels,
    image_channels,
    image_conditioning_video,
    model_channels,
    model_clip_features,
)

I2V = tiny_variant(in_channels=36, has_image_branch=True, image_dim=20)
FLF2V = tiny_variant(in_channels=36, has_image_branch=True, image_dim=20, has_image_positions=True)
FUN_CONTROL = tiny_variant(in_channels=48, has_image_branch=True, image_dim=20)


def _batch(**features: torch.Tensor | dict[str, torch.Tensor]) -> FeatureBatch:
    tensors = {name: value if isinstance(value, dict) else {"latents": value} for name, value in features.items()}
    return FeatureBatch(features=tensors, frames=9, fps=16.0)


def test_pictures_stand_first_and_last_with_mid_grey_between() -> None:
    first, last = torch.full((3, 4, 6), 0.5), torch.full((3, 4, 6), -0.5)
    video = image_conditioning_video(first, last, 9)
    assert video.shape == (3, 9, 4, 6)
    assert video[0, :, 0, 0].tolist() == [0.5, 0, 0, 0, 0, 0, 0, 0, -0.5]
    assert image_conditioning_video(first, None, 9)[0, :, 0, 0].tolist() == [0.5] + [0] * 8


def test_mask_of_a_first_picture_equals_wans(golden: Path) -> None:
    """Original: Wan 2.1 `image2video.py`, stored as `y` of the pipeline run."""
    stored = load_file(golden / "pipe_i2v_io.safetensors")
    names = [name for name in stored if name.split(".")[-1] == "y"]
    assert names
    for name in names:
        assert torch.equal(image_channels(stored[name][4:]), stored[name])


def test_mask_of_a_last_picture_is_the_fourth_channel_of_the_last_latent_frame() -> None:
    """Wan 2.1 `first_last_frame2video.py`: video frames grouped by four, the first one repeated."""
    channels = image_channels(torch.randn(2, 16, 3, 4, 6), last_given=True)
    assert channels.shape == (2, 20, 3, 4, 6)
    assert channels[1, :4, :, 0, 0].T.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]


def test_control_stands_before_the_first_frames_latent() -> None:
    control, image = torch.randn(2, 16, 3, 4, 6), torch.randn(2, 16, 3, 4, 6)
    channels = control_channels(control, image)
    assert torch.equal(channels[:, :16], control)
    assert torch.equal(channels[:, 16:, 0], image[:, :, 0])
    assert not channels[:, 16:, 1:].any()
    assert not control_channels(control, None)[:, 16:].any()


def test_each_family_takes_its_own_features() -> None:
    image, control = torch.randn(2, 20, 3, 4, 6), torch.randn(2, 16, 3, 4, 6)
    assert model_channels(tiny_variant(), _batch()) is None
    assert torch.equal(model_channels(I2V, _batch(image_latents=image)), image)
    fun = model_channels(FUN_CONTROL, _batch(image_latents=image, control_latents=control))
    assert torch.equal(fun, control_channels(control, image[:, 4:]))
    assert torch.equal(model_channels(FUN_CONTROL, _batch(control_latents=control)), control_channels(control, None))


def test_clip_tokens_of_both_pictures_stand_one_after_the_other() -> None:
    first, last = torch.randn(2, 257, 20), torch.randn(2, 257, 20)
    assert model_clip_features(tiny_variant(), _batch()) is None
    assert model_clip_features(FUN_CONTROL, _batch()) is None
    assert model_clip_features(I2V, _batch(clip={"first": first})) is first
    both = model_clip_features(FLF2V, _batch(clip={"first": first, "last": last}))
    assert torch.equal(both, torch.cat((first, last), dim=1))


def test_a_missing_feature_is_named() -> None:
    with pytest.raises(ConditionError, match="needs the feature 'image_latents'"):
        model_channels(I2V, _batch())
    with pytest.raises(ConditionError, match="needs the feature 'control_latents'; the batch has clip"):
        model_channels(FUN_CONTROL, _batch(clip={}))
    with pytest.raises(ConditionError, match="needs the feature 'clip'"):
        model_clip_features(I2V, _batch())
    with pytest.raises(ConditionError, match="CLIP features of both pictures"):
        model_clip_features(FLF2V, _batch(clip={"first": torch.zeros(2, 257, 20)}))
