"""Picture modes against other implementations of the same filters and against the originals' outputs."""

import cv2
import numpy as np
from PIL import Image
import pytest
from safetensors.torch import load_file
import torch

from common.errors import ConfigError
from common.media.picture import PICTURE_MODES, fit, fit_exact, to_minus_one_one, turn, wan_i2v_size


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """A smooth random picture 97 high, 130 wide."""
    small = np.random.default_rng(0).integers(0, 256, (13, 17, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((130, 97), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("mode", PICTURE_MODES)
@pytest.mark.parametrize("size", [(64, 48), (48, 64), (320, 240), (160, 32), (130, 97)])
def test_every_mode_gives_the_size_for_a_picture_and_for_frames(photo: np.ndarray, mode: str,
                                                                size: tuple[int, int]) -> None:
    one = fit(photo, size, mode)
    assert one.shape == (size[1], size[0], 3) and one.dtype == np.uint8
    two = fit(np.stack([photo, photo[::-1]]), size, mode)
    assert two.shape == (2, size[1], size[0], 3)
    np.testing.assert_array_equal(two[0], one)


@pytest.mark.parametrize("mode", PICTURE_MODES)
def test_exact_and_rounded_agree_within_half_a_level(photo: np.ndarray, mode: str) -> None:
    exact = fit_exact(photo, (64, 48), mode)
    assert exact.shape == (3, 1, 48, 64) and exact.dtype == torch.float32
    rounded = to_minus_one_one(fit(photo, (64, 48), mode))
    assert (exact.clamp(-1, 1) - rounded).abs().max() <= 0.5 / 127.5 + 1e-5


def test_cover_scales_down_by_area_and_up_by_lanczos_then_crops_the_middle(photo: np.ndarray) -> None:
    # 64/130 = 0.492, 64/97 = 0.660: the height rules, 130*0.6598+0.5 = 86.27
    down = cv2.resize(photo, (86, 64), interpolation=cv2.INTER_AREA)[:, 11:75]
    np.testing.assert_array_equal(fit(photo, (64, 64), "cover"), down)
    up = np.asarray(Image.fromarray(photo).resize((268, 200), Image.Resampling.LANCZOS))[:, 34:234]
    np.testing.assert_array_equal(fit(photo, (200, 200), "cover"), up)


def test_omniavatar_is_an_antialiased_triangle_filter_with_sizes_cut_to_int(photo: np.ndarray) -> None:
    # 40/97 = 0.41237: int(130*0.41237) = 53 wide, (53-40)/2 = 6.5: seven columns go at the left (padding // 2 of -13).
    scaled = np.asarray(Image.fromarray(photo).resize((53, 40), Image.Resampling.BILINEAR)).astype(float)
    ours = fit(photo, (40, 40), "omniavatar").astype(float)
    assert np.abs(ours - scaled[:, 7:47]).max() <= 1


def test_omniavatar_leaves_no_black_line_where_int_falls_short() -> None:
    white = np.full((1079, 1919, 3), 255, np.uint8)
    for size in [(720, 400), (400, 720), (720, 720), (1280, 720), (528, 960)]:
        assert fit(white, size, "omniavatar").min() == 255


def test_wan_i2v_size_follows_the_area_in_steps_of_sixteen() -> None:
    assert wan_i2v_size(480, 832, 480 * 832) == (832, 480)
    assert wan_i2v_size(512, 512, 480 * 832) == (624, 624)  # sqrt(399360)=631.9 → 78.99 → 78 → 624
    width, height = wan_i2v_size(1104, 1472, 720 * 1280)
    assert width % 16 == height % 16 == 0 and width * height <= 720 * 1280


def test_wan_i2v_keeps_the_overshoot_of_bicubic() -> None:
    edge = np.zeros((16, 16, 3), np.uint8)
    edge[:, 8:] = 255
    exact = fit_exact(edge, (48, 48), "wan_i2v")
    assert exact.max() > 1 and exact.min() < -1
    assert fit(edge, (48, 48), "wan_i2v").max() == 255


def test_ti2v_equals_the_original_pipeline(golden) -> None:
    tensors = load_file(golden / "wan22_pipe_io.safetensors")
    image = tensors["ti2v_5b.i2v.image"].numpy().astype(np.uint8)
    expected = tensors["ti2v_5b.i2v.image_tensor"]
    ours = fit_exact(image, (expected.shape[-1], expected.shape[-2]), "ti2v")
    assert (ours - expected).abs().max() <= 1e-6


def test_minus_one_one_maps_black_and_white_to_the_ends() -> None:
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    frames[1] = 255
    tensor = to_minus_one_one(frames)
    assert tensor.shape == (3, 2, 4, 6)
    assert tensor[:, 0].unique().tolist() == [-1.0] and tensor[:, 1].unique().tolist() == [1.0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turn_equals_pillow_for_every_exif_orientation(orientation: int) -> None:
    from PIL import ImageOps

    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(turn(pixels, orientation), np.asarray(ImageOps.exif_transpose(image)))


def test_unknown_mode_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="cover, wan_i2v"):
        fit(np.zeros((4, 4, 3), np.uint8), (2, 2), "squeeze")  # type: ignore[arg-type]
