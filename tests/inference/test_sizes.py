"""Rules of size and length."""

from inference.sizes import Length, clip_length, clip_size, longest_problem, size_problem


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
    assert clip_length(None, 81, sound_s=None, fps=16) == Length(81, 81)
    assert clip_length(None, 81, sound_s=2.0, fps=25) == Length(53, 50)
    assert clip_length(None, 81, sound_s=0.5, fps=25) == Length(13, 13)
    assert clip_length(None, 81, sound_s=1e-4, fps=25) == Length(1, 1)
    assert clip_length(33, 81, sound_s=2.0, fps=25) == Length(33, 33)


def test_the_longest_sound_is_named_in_seconds():
    """OmniAvatar's rule: 30000 tokens at 400x720 are 105 frames, 4.2 s at 25 fps."""
    assert longest_problem(clip_length(None, 81, sound_s=4.2, fps=25), 25, 30000, (720, 400)) == ""
    problem = longest_problem(clip_length(None, 81, sound_s=4.3, fps=25), 25, 30000, (720, 400))
    assert "at most 4.20 s (105 frames" in problem and "--video_length 105" in problem
