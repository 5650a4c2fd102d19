"""Rules of size and length."""

import pytest

from inference.sizes import OMNIAVATAR_SIZES, clip_length, clip_size, nearest_size, size_problem


def test_wan_image_to_video_takes_the_area_and_the_pictures_shape():
    assert clip_size(480, 832, "wan_i2v", (720, 1280)) == (832, 464)
    assert clip_size(480, 832, "cover", (720, 1280)) == (832, 480)
    assert clip_size(480, 832, "wan_i2v", None) == (832, 480)


def test_sizes_off_the_multiple_name_the_next_ones():
    assert size_problem(480, 832, 16) == ""
    assert "Height 480, width 832 or 848 would do" in size_problem(480, 840, 16)
    assert "Height 16, width 832" in size_problem(8, 832, 16)
    assert size_problem(480, 848, 32) != ""


def test_sound_rules_the_length_where_none_is_asked():
    assert clip_length(None, 81, sound_s=None, fps=16) == 81
    assert clip_length(None, 81, sound_s=2.0, fps=25) == 50
    assert clip_length(None, 81, sound_s=2.0, fps=25, shift=1) == 51
    assert clip_length(None, 81, sound_s=1e-4, fps=25) == 1
    assert clip_length(33, 81, sound_s=2.0, fps=25, shift=1) == 33


@pytest.mark.parametrize(("picture", "size"), [((1080, 1920), (400, 720)), ((1920, 1080), (720, 400)),
                                               ((512, 512), (720, 720)), ((480, 832), (400, 720))])
def test_omniavatars_size_is_the_one_of_the_nearest_shape(picture, size):
    """The choices that its script makes."""
    assert nearest_size(picture, OMNIAVATAR_SIZES[720]) == size
