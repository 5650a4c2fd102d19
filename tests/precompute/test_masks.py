"""Masks in the cache scripts: no model is needed, and a mask that cannot be costs only its own entries."""

from pathlib import Path

import numpy as np
from PIL import Image
import pytest

from common.errors import ConfigError
from common.tensorfile import load_tensors
from precompute import ModelFiles, run
from precompute.caching import exit_code
from tests.demo_clips import copy_clips, toml_text


@pytest.fixture
def data(root: Path, tmp_path: Path) -> Path:
    """Two clips with a face mask each; the second one's covers nothing."""
    copy_clips(root, tmp_path / "clips", range(2))
    (tmp_path / "faces").mkdir()
    for number in range(2):
        picture = np.zeros((64, 64), np.uint8)
        picture[16:48, 16:40] = 255 * (number == 0)
        Image.fromarray(picture).save(tmp_path / "faces" / f"head_{number:03d}.png")
    text = toml_text(tmp_path, frames=5)
    path = tmp_path / "data.toml"
    path.write_text(f'{text}face_mask_directory = "{(tmp_path / "faces").as_posix()}"\n', encoding="utf-8")
    return path


def test_masks_are_cached_without_a_model_and_a_black_one_is_named(data: Path) -> None:
    summary = run(["region_masks"], data, models=ModelFiles())
    assert (summary.encoded, exit_code(summary)) == (1, 1)
    [failure] = summary.failed
    assert failure.startswith("head_001.mp4 frames 0-4 region_masks: ")
    assert "head_001.png: a mask that covers nothing" in failure
    [path] = (data.parent / "cache").glob("*.region_masks.safetensors")
    tensors, header = load_tensors(path)
    # The 64 x 64 mask is halved: columns 8 to 20 and rows 8 to 24 of 32, so the second place and half of the third.
    assert tensors["face"][0, :, 1].tolist() == [[0, 1, 0.5, 0]] * 2 and not tensors["lip"].any()
    assert tensors["face"][0, :, 0].max() == 0
    assert header["option.time"] == "maximum of 4" and "mask.face" in header and "source" not in header


def test_a_bad_mask_leaves_the_clips_other_features_alone(data: Path, tiny_weights: Path) -> None:
    summary = run(["latents"], data, models=ModelFiles(vae=tiny_weights / "Wan2.1_VAE.pth"))
    assert len(summary.failed) == 1 and "region_masks" in summary.failed[0]
    assert len(list((data.parent / "cache").glob("*.latents.safetensors"))) == 2


def test_masks_that_no_entry_names_are_told_with_the_remedy(data: Path) -> None:
    data.write_text(data.read_text(encoding="utf-8").split("face_mask_directory")[0], encoding="utf-8")
    with pytest.raises(ConfigError, match="'region_masks' needs region_masks, and no source has it. Set face_mask_dir"):
        run(["region_masks"], data, models=ModelFiles())
