"""The dataset over real clips: every file is read, or refused with a reason that a user understands."""

from pathlib import Path
import shutil

import numpy as np
import pytest

from common.errors import ConfigError
from dataset.media import load_media
from tests.dataset.toys import opened, write_dataset

SILENT = {"decord_rotated_90.mov", "intel_asl_book_noaudio.mkv"}
TOML = """
[general]
resolution = [96, 96]
enable_bucket = true
[[datasets]]
video_directory = "{d}/speech"
target_frames = [25]
audio = "clip"
[[datasets]]
video_directory = "{d}/silent"
target_frames = [1, 25]
"""


@pytest.fixture()
def folder(shared: Path, tmp_path: Path) -> Path:
    for path in (shared / "data" / "video").iterdir():
        target = tmp_path / ("silent" if path.name in SILENT else "speech") / path.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
        target.with_suffix(".txt").write_text(f"a clip named {path.stem}")
    return tmp_path


@pytest.mark.slow
def test_every_real_clip_gives_pictures_and_sound_of_the_same_moments(folder: Path) -> None:
    dataset = opened(write_dataset(folder, TOML))
    assert not dataset.failed
    assert {item.name for item in dataset.items} | {one.name for one in dataset.dropped} == {
        path.name for path in folder.glob("*/*") if path.suffix not in (".txt", ".json") and path.is_file()
        and not path.name.startswith(".")}
    items = {item.name: item for item in dataset.items}
    for item in dataset.items:
        span = item.spans[-1]
        media = load_media(item, span, ("frames", "reference", "caption", *(("sound",) if item.sound else ())))
        assert media.frames is not None
        assert media.frames.shape == (span.frames, span.height, span.width, 3)
        assert media.frames.any()
        if item.sound:
            assert media.sound is not None
            assert len(media.sound) == round(span.frames / 25 * 16000)
            assert np.abs(media.sound).max() > 1e-3, item.name
    # Facts of the manifest of these files: size as shown, and the picture's late start.
    assert items["decord_rotated_90.mov"].spans[0].size == (64, 144), "turned upright: 320x568"
    assert items["moore_talkinghead3.mp4"].picture_start_s == pytest.approx(7.341, abs=1e-3)
    assert items["real3dportrait_may_5s.mp4"].n_frames == 125


def test_silent_clips_where_sound_is_asked_are_named(folder: Path) -> None:
    shutil.move(folder / "silent" / "intel_asl_book_noaudio.mkv", folder / "speech")
    shutil.move(folder / "silent" / "intel_asl_book_noaudio.txt", folder / "speech")
    with pytest.raises(ConfigError, match=r"intel_asl_book_noaudio\.mkv: sound is asked for"):
        opened(write_dataset(folder, TOML))
