"""The table of what a dataset holds."""

from pathlib import Path

from dataset.report import describe
from tests.dataset.toys import MakeVideo, opened, write_dataset


def test_report_tells_entries_sizes_and_what_was_left_out(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "long.mp4", frames=30, size=(64, 32))
    make_video(tmp_path / "clips" / "short.mp4", frames=10)
    make_video(tmp_path / "clips" / "broken.mp4").write_bytes(b"x")
    text = describe(opened(write_dataset(tmp_path, """
[[datasets]]
name = "speech"
video_directory = "{d}/clips"
resolution = [48, 32]
target_frames = [9, 17]
target_fps = 25
num_repeats = 3
""")))
    lines = text.splitlines()
    assert lines[1].split() == ["speech", "video", "2", "3", "9", "25", "-", "48x32x9:", "2,", "48x32x17:", "1"]
    assert "cannot be read: broken.mp4:" in text


def test_dropped_sources_stand_in_the_report(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "long.mp4", frames=30)
    make_video(tmp_path / "clips" / "short.mp4", frames=10)
    text = describe(opened(write_dataset(
        tmp_path, '[[datasets]]\nvideo_directory = "{d}/clips"\nresolution = [48, 32]\ntarget_frames = [17]\n'
                  'target_fps = 25\n')))
    assert "left out: short.mp4: 10 frames at 25 fps; the shortest target is 17" in text


def test_absent_sources_are_counted(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "clips" / "a.mp4")
    toml = write_dataset(tmp_path, '[[datasets]]\nvideo_directory = "{d}/clips"\nresolution = [48, 32]\n')
    opened(toml)
    path.unlink()
    assert "1 sources are not there" in describe(opened(toml))
