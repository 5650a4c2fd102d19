"""Dataset TOMLs: what musubi-tuner accepts is accepted, and every mistake is told with its place and its remedy."""

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from dataset.config import load_dataset_config
from dataset.schema import ImageEntry, VideoEntry
from tests.dataset.toys import MakeVideo, make_picture, write_dataset


@pytest.fixture()
def folder(tmp_path: Path, make_video: MakeVideo) -> Path:
    make_video(tmp_path / "clips" / "a.mp4")
    make_picture(tmp_path / "pictures" / "p.png")
    return tmp_path


def problems_of(path: Path) -> str:
    with pytest.raises(ConfigError) as raised:
        load_dataset_config(path)
    return str(raised.value)


def test_musubis_documented_form_is_accepted(folder: Path) -> None:
    config = load_dataset_config(write_dataset(folder, """
[general]
resolution = [960, 544]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
bucket_no_upscale = false

[[datasets]]
image_directory = "{d}/pictures"
cache_directory = "{d}/cache-images"
num_repeats = 2

[[datasets]]
video_directory = "{d}/clips"
cache_directory = "{d}/cache-videos"
target_frames = [1, 25, 45]
frame_extraction = "uniform"
frame_sample = 4
frame_stride = 10
max_frames = 129
source_fps = 30
resolution = 512
"""))
    images, videos = (section.entry for section in config.sections)
    assert isinstance(images, ImageEntry)
    assert (images.resolution, images.num_repeats, images.enable_bucket) == ((960, 544), 2, True)
    assert isinstance(videos, VideoEntry)
    assert (videos.resolution, videos.source_fps) == ((512, 512), 30.0)
    assert videos.extraction.target_frames == (1, 25, 45)


def test_json_of_the_same_structure_is_accepted(folder: Path) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({"general": {"resolution": [64, 32]},
                                "datasets": [{"image_directory": str(folder / "pictures")}]}))
    assert load_dataset_config(path).sections[0].entry.resolution == (64, 32)


def test_byte_order_mark_is_no_mistake(folder: Path) -> None:
    path = folder / "dataset.toml"
    path.write_text(f"[[datasets]]\nvideo_directory = '{folder.as_posix()}/clips'\n", encoding="utf-8-sig")
    assert load_dataset_config(path).sections[0].name == "clips"


def test_every_mistake_is_told_at_once_with_line_table_key_and_nearest(folder: Path) -> None:
    told = problems_of(write_dataset(folder, """
[general]
resolutoin = 512
source_fps = 30.0

[[datasets]]
video_directory = "{d}/clips"
target_frame = [81]
frame_extraction = "hed"
batch_size = "two"

[[datasets]]
image_directory = "{d}/pictures"
target_frames = [1]

[[datasets]]
video_directory = "{d}/clip"
cache_directory = "{d}/other"

[datset]
"""))
    for expected in ("line 3: [general] unknown key 'resolutoin' (nearest: 'resolution')",
                     "line 4: [general] source_fps: this key belongs into each [[datasets]] entry",
                     "line 8: [[datasets]] 1 unknown key 'target_frame' (nearest: 'target_frames')",
                     "line 9: [[datasets]] 1 frame_extraction: 'hed' is none of", "(nearest: 'head')",
                     "line 10: [[datasets]] 1 batch_size:", "'two'",
                     "line 14: [[datasets]] 2 target_frames: an entry of pictures has no such key",
                     "line 17: [[datasets]] 3 video_directory: no such folder:", "(nearest: 'clips')",
                     "unknown table or key 'datset' (nearest: 'datasets')"):
        assert expected in told, f"{expected!r} is not in\n{told}"


def test_rows_are_checked_even_when_a_key_is_wrong(folder: Path) -> None:
    (folder / "clips" / "a.txt").unlink()
    told = problems_of(write_dataset(folder, """
[[datasets]]
video_directory = "{d}/clips"
[[datasets]]
image_directory = "{d}/pictures"
resolutio = 5
"""))
    assert "no caption: a.txt is missing" in told
    assert "unknown key 'resolutio'" in told


def test_wrong_value_in_general_is_told_once_and_hides_nothing_else(folder: Path) -> None:
    (folder / "clips" / "a.txt").unlink()
    told = problems_of(write_dataset(folder, """
[general]
batch_size = 0
[[datasets]]
video_directory = "{d}/clips"
[[datasets]]
image_directory = "{d}/pictures"
"""))
    assert told.count("batch_size") == 1
    assert "no caption: a.txt is missing" in told


@pytest.mark.parametrize(("line", "expected"), [
    ('video_directory = "C:\\data"', "single quotes"),
    ('video_directory = "C:\\new\\train"', "control character"),
    ("video_directory = 3", "must be a path in quotes"),
    ("resolution = true", "must be a number or [width, height]"),
    ("resolution = [1, 2, 3]", "resolution:"),
    ("batch_size = 0", "greater than or equal to 1"),
    ("enable_bucket = 1", "enable_bucket:"),
    ("target_fps = 0", "greater than 0"),
    ("target_fps = nan", "target_fps:"),
    ('audio = "yes"', "'yes' is none of 'clip' or 'none'"),
    ("target_frames = []", "target_frames:"),
    ("source_fps = 30\ntarget_fps = 25", "has source_fps and target_fps"),
    ('audio = "none"\naudio_directory = "{d}/clips"', "audio_directory. Remove one of them"),
    ('video_jsonl_file = "x.jsonl"', "an entry has one source"),
    ("multiple_target = true", "several pictures at once. Remove the key"),
    ("flux_kontext_no_resize_control = true", "belongs to picture-editing models"),
    ("fp_1f_clean_indices = [0]", "one-frame training, which is not offered"),
])
def test_wrong_values_are_refused_with_the_reason(folder: Path, line: str, expected: str) -> None:
    base = "" if line.startswith("video_directory") else 'video_directory = "{d}/clips"\n'
    assert expected in problems_of(write_dataset(folder, f"[[datasets]]\n{base}{line}\n"))


def test_harmless_keys_of_other_models_are_ignored_with_a_line(folder: Path) -> None:
    config = load_dataset_config(write_dataset(folder, """
[[datasets]]
image_directory = "{d}/pictures"
fp_latent_window_size = 9
no_resize_control = false
"""))
    assert "fp_latent_window_size is ignored: it belongs to FramePack" in "\n".join(config.notes)


def test_what_is_rounded_is_told(folder: Path) -> None:
    config = load_dataset_config(write_dataset(folder, """
[[datasets]]
video_directory = "{d}/clips"
target_frames = [80, 81, 20]
frame_extraction = "uniform"
bucket_no_upscale = true
caption_extension = "txt"
"""))
    notes = "\n".join(config.notes)
    assert "target_frames 80 becomes 77" in notes
    assert "target_frames 20 becomes 17" in notes
    assert "'uniform' with frame_sample 1 is 'head'" in notes
    assert "bucket_no_upscale does nothing" in notes
    assert config.sections[0].entry.extraction.target_frames == (17, 77, 81)
    assert config.sections[0].entry.extraction.mode == "head"


def test_entry_without_a_source_is_told_what_to_give(folder: Path) -> None:
    told = problems_of(write_dataset(folder, '[[datasets]]\nvideo_directry = "x"\n'))
    assert "names no source" in told
    assert "'video_directory'" in told


def test_file_without_entries_and_missing_file_are_told(tmp_path: Path) -> None:
    assert "no [[datasets]] entry" in problems_of(write_dataset(tmp_path, "[general]\nresolution = 64\n"))
    with pytest.raises(ConfigError, match="no such file"):
        load_dataset_config(tmp_path / "nothing.toml")


def test_cache_directory_and_name_must_differ_between_entries(folder: Path) -> None:
    told = problems_of(write_dataset(folder, """
[[datasets]]
video_directory = "{d}/clips"
cache_directory = "{d}/cache"
name = "a"
[[datasets]]
image_directory = "{d}/pictures"
cache_directory = "{d}/cache"
name = "a"
"""))
    assert "cache_directory" in told
    assert "name: a is also used" in told


def test_list_file_needs_a_cache_directory(folder: Path) -> None:
    (folder / "list.jsonl").write_text('{"image_path": "pictures/p.png", "caption": "x"}\n')
    assert "lacks cache_directory" in problems_of(
        write_dataset(folder, '[[datasets]]\nimage_jsonl_file = "{d}/list.jsonl"\n'))


def test_relative_paths_mean_the_working_directory_then_the_toml(folder: Path, tmp_path_factory: pytest.TempPathFactory,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dataset(folder, "[[datasets]]\nvideo_directory = 'clips'\ncache_directory = 'cache'\n")
    monkeypatch.chdir(folder)
    config = load_dataset_config("dataset.toml")
    assert config.sections[0].places.cache == folder / "cache"
    assert not config.notes[1:]
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    config = load_dataset_config(path)
    assert config.sections[0].places.cache == folder / "cache"
    assert "dataset file's folder" in "\n".join(config.notes)
