"""Odd picture files: each is read as a viewer shows it, or refused by name."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
import pytest

from common.errors import MediaError
from common.media.image import read_image


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)


def test_plain_picture_comes_back_without_notes(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "ünï 空 'q'.png"
    Image.fromarray(pixels).save(path)
    picture, notes = read_image(path)
    np.testing.assert_array_equal(picture, pixels)
    assert notes == ()


def test_exif_orientation_is_applied(tmp_path: Path, pixels: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    picture, notes = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(picture, np.rot90(pixels, -1))
    assert "orientation 6" in notes[0]


def test_transparency_is_flattened_on_black(tmp_path: Path, pixels: np.ndarray) -> None:
    alpha = np.full((20, 30, 1), 255, np.uint8)
    alpha[:, :10], alpha[:, 10:20] = 0, 128
    Image.fromarray(np.concatenate([pixels, alpha], 2)).save(tmp_path / "a.png")
    picture, notes = read_image(tmp_path / "a.png")
    assert picture[:, :10].max() == 0
    np.testing.assert_allclose(picture[:, 10:20], pixels[:, 10:20] * (128 / 255), atol=0.51)
    np.testing.assert_array_equal(picture[:, 20:], pixels[:, 20:])
    assert "black" in notes[0]


def test_opaque_alpha_is_not_worth_a_note(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).convert("RGBA").save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[1] == ()


def test_palette_with_a_transparent_colour_is_flattened(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 10, 20] + [0] * 750)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert read_image(tmp_path / "opaque.png")[0][0, 0].tolist() == [255, 10, 20]
    assert read_image(tmp_path / "clear.png")[0].max() == 0


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bit_is_rounded_not_cut(tmp_path: Path, suffix: str, channels: int) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (8, 8, channels)).astype(np.uint16)
    if channels == 4:
        deep[:, :, 3] = 65535
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), deep if channels > 1 else deep[:, :, 0])
    picture, notes = read_image(path)
    expected = deep[:, :, 2::-1] if channels >= 3 else np.repeat(deep, 3, 2)
    np.testing.assert_array_equal(picture, np.rint(expected / 257).astype(np.uint8))
    assert notes == ("16 bits rounded to 8",)


def test_content_decides_not_the_name(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")
    picture, notes = read_image(tmp_path / "a.png")
    assert picture.shape == pixels.shape
    assert notes == ("JPEG data under the name .png",)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "LA"])
def test_grey_and_print_colours_become_rgb(tmp_path: Path, pixels: np.ndarray, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(pixels).convert(mode).save(path)
    picture, _ = read_image(path)
    assert picture.shape == (20, 30, 3) and picture.dtype == np.uint8


def test_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    picture, notes = read_image(tmp_path / "a.gif")
    assert picture[0, 0].tolist() == [255, 0, 0]
    assert notes == ("first of 2 frames taken",)


def test_broken_files_are_refused_by_name(tmp_path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).resize((300, 300)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    for name, reason in [("cut.jpg", "truncated"), ("empty.png", "0 bytes"), ("text.png", "unknown content"),
                         ("missing.png", "no such")]:
        with pytest.raises(MediaError, match=reason) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
