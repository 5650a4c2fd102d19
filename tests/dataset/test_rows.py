"""Rows: what folders, JSONL files and manifests name, and how what is wrong with them is told."""

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from dataset.config import DatasetConfig, load_dataset_config
from tests.dataset.toys import MakeVideo, make_picture, make_sound, write_dataset

LIST = '[[datasets]]\nvideo_jsonl_file = "{d}/list.jsonl"\ncache_directory = "{d}/cache"\n'


def jsonl(folder: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "list.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return write_dataset(folder, LIST)


def directory(folder: Path, extra: str = "") -> DatasetConfig:
    return load_dataset_config(write_dataset(folder, f'[[datasets]]\nvideo_directory = "{{d}}/clips"\n{extra}\n'))


def test_folder_is_read_in_the_order_of_names_whatever_the_letters(tmp_path: Path, make_video: MakeVideo) -> None:
    names = ["b clip.MP4", "a'quote\".mov", "視頻.mp4", "[x]-$1.mkv", "ünïcode.mp4"]
    for name in names:
        make_video(tmp_path / "clips" / name, caption=f"caption of {name}")
    (tmp_path / "clips" / "._hidden.mp4").write_bytes(b"")
    rows = directory(tmp_path).sections[0].rows
    assert [row.media.key for row in rows] == sorted(names)
    assert {row.media.key: row.caption for row in rows} == {name: f"caption of {name}" for name in names}


def test_missing_captions_are_all_told_with_the_nearest_name(tmp_path: Path, make_video: MakeVideo) -> None:
    for name in ("one.mp4", "two.mp4", "three.mp4"):
        make_video(tmp_path / "clips" / name, caption=None)
    (tmp_path / "clips" / "tow.txt").write_text("x")
    with pytest.raises(ConfigError) as raised:
        directory(tmp_path)
    assert str(raised.value).count("no caption") == 3
    assert "two.txt is missing (nearest: 'tow.txt')" in str(raised.value)


def test_caption_is_stripped_and_may_be_empty_and_have_a_byte_order_mark(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", caption="  two\nlines \n")
    make_video(tmp_path / "clips" / "b.mp4", caption="")
    make_video(tmp_path / "clips" / "c.mp4", caption="\ufeffmarked")
    assert [row.caption for row in directory(tmp_path).sections[0].rows] == ["two\nlines", "", "marked"]


def test_caption_in_another_encoding_is_told(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4").with_suffix(".txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(ConfigError, match="a.txt: the caption is not UTF-8"):
        directory(tmp_path)


def test_empty_and_missing_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        directory(tmp_path)
    (tmp_path / "clips").mkdir()
    with pytest.raises(ConfigError, match="holds no videos"):
        directory(tmp_path)


def test_folder_of_pictures_with_a_caption_beside_it_is_a_video(tmp_path: Path) -> None:
    for number in range(3):
        make_picture(tmp_path / "clips" / "walk.v2" / f"{number}.png", caption=None)
        make_picture(tmp_path / "clips" / "stray" / f"{number}.png", caption=None)
    (tmp_path / "clips" / "walk.v2.txt").write_text("a walk")
    config = directory(tmp_path)
    assert [(row.media.key, row.caption) for row in config.sections[0].rows] == [("walk.v2", "a walk")]
    assert "subfolders are not searched: stray" in "\n".join(config.notes)


def test_control_is_found_by_name_folder_or_other_ending(tmp_path: Path, make_video: MakeVideo) -> None:
    for stem in ("a", "b", "c"):
        make_video(tmp_path / "clips" / f"{stem}.mp4")
    make_video(tmp_path / "poses" / "a.mp4", caption=None)
    make_video(tmp_path / "poses" / "a.mkv", caption=None)
    make_picture(tmp_path / "poses" / "b" / "0.png", caption=None)
    make_video(tmp_path / "poses" / "c.mov", caption=None)
    rows = directory(tmp_path, 'control_directory = "{d}/poses"').sections[0].rows
    assert [row.sides["control"][0].key for row in rows] == ["control:a.mp4", "control:b", "control:c.mov"]


def test_missing_control_and_sound_are_told_for_each_video(tmp_path: Path, make_video: MakeVideo) -> None:
    for stem in ("a", "b"):
        make_video(tmp_path / "clips" / f"{stem}.mp4")
    make_video(tmp_path / "poses" / "a.mp4", caption=None)
    make_sound(tmp_path / "sound" / "b.WAV", 1.0)
    with pytest.raises(ConfigError) as raised:
        directory(tmp_path, 'control_directory = "{d}/poses"\naudio_directory = "{d}/sound"')
    assert "b.mp4: no control file" in str(raised.value)
    assert "a.mp4: no audio file" in str(raised.value)


def test_picture_takes_one_control_picture_by_stem_or_number(tmp_path: Path) -> None:
    for stem in ("p", "q"):
        make_picture(tmp_path / "pictures" / f"{stem}.png")
    make_picture(tmp_path / "poses" / "p.jpg", caption=None)
    make_picture(tmp_path / "poses" / "q_0.png", caption=None)
    toml = '[[datasets]]\nimage_directory = "{d}/pictures"\ncontrol_directory = "{d}/poses"\n'
    rows = load_dataset_config(write_dataset(tmp_path, toml)).sections[0].rows
    assert [row.sides["control"][0].key for row in rows] == ["control:p.jpg", "control:q_0.png"]
    make_picture(tmp_path / "poses" / "q_1.png", caption=None)
    with pytest.raises(ConfigError, match="Keep one; Wan takes one"):
        load_dataset_config(write_dataset(tmp_path, toml))


def test_jsonl_with_every_side_file_is_read(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "v" / "a.mp4")
    make_sound(tmp_path / "v" / "a.wav", 1.0)
    make_picture(tmp_path / "v" / "face.png")
    (tmp_path / "v" / "camera.json").write_text("[]")
    path = jsonl(tmp_path, {"video_path": "v/a.mp4", "caption": " Ein Mann… ", "audio_path": "v/a.wav",
                            "reference_path": "v/face.png", "mask_path": "v/face.png", "camera_path": "v/camera.json",
                            "face_mask_path": "v/face.png", "lip_mask_path": "v/face.png",
                            "control_path": "v/a.mp4"}, "")
    (row,) = load_dataset_config(path).sections[0].rows
    assert row.caption == "Ein Mann…"
    assert row.media.key == "v/a.mp4"
    assert {role: len(files) for role, files in row.sides.items()} == {
        "audio": 1, "reference": 1, "mask": 1, "camera": 1, "face_mask": 1, "lip_mask": 1, "control": 1}


def test_every_bad_line_of_a_jsonl_is_told_with_its_number(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "v" / "a.mp4")
    path = jsonl(tmp_path, {"video_path": "v/a.mp4"}, "{not json", '["list"]',
                 {"video_path": "v/b.mp4", "caption": "x"}, {"video_path": "v/a.mp4", "captoin": "x"},
                 {"video_path": "v/a.mp4", "caption": 3},
                 {"video_path": "v/a.mp4", "caption": "x", "control_path_1": "y"},
                 {"video_path": "C:\new\a.mp4", "caption": "x"},
                 {"video_path": "v/a.mp4", "caption": "x", "audio_path": "v/none.wav"})
    with pytest.raises(ConfigError) as raised:
        load_dataset_config(path)
    told = str(raised.value)
    for expected in ("list.jsonl:1: 'caption' is missing", "list.jsonl:2: not valid JSON",
                     "list.jsonl:3: expected an object",
                     "list.jsonl:4: path 'v/b.mp4': no such file (nearest: 'a.mp4')",
                     "list.jsonl:5: unknown key 'captoin' (nearest: 'caption')",
                     "list.jsonl:6: the caption must be text",
                     "list.jsonl:7: control_path_1", "list.jsonl:8:", "control character",
                     "list.jsonl:9: audio path 'v/none.wav'"):
        assert expected in told, f"{expected!r} is not in\n{told}"


def test_keys_that_mean_nothing_are_told_once_and_ignored(tmp_path: Path, make_video: MakeVideo) -> None:
    for stem in ("a", "b"):
        make_video(tmp_path / f"{stem}.mp4")
    config = load_dataset_config(jsonl(tmp_path, *[{"video_path": f"{stem}.mp4", "caption": "x", "duration": 1}
                                                   for stem in ("a", "b")]))
    assert [note for note in config.notes if "duration" in note] == [
        "'list': list.jsonl: keys without a meaning here are ignored: duration."]


def test_the_same_source_twice_is_told(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "a.mp4")
    with pytest.raises(ConfigError, match=r"list.jsonl:2: 'a.mp4' already stands at .*list.jsonl:1.*num_repeats"):
        load_dataset_config(jsonl(tmp_path, {"video_path": "a.mp4", "caption": "x"},
                                  {"video_path": "./a.mp4", "caption": "y"}))


def test_control_must_stand_on_all_lines_or_none(tmp_path: Path, make_video: MakeVideo) -> None:
    for stem in ("a", "b"):
        make_video(tmp_path / f"{stem}.mp4")
    with pytest.raises(ConfigError, match=r"list.jsonl:2 .b.mp4.: no control file, while other sources have one"):
        load_dataset_config(jsonl(tmp_path, {"video_path": "a.mp4", "caption": "x", "control_path": "b.mp4"},
                                  {"video_path": "b.mp4", "caption": "y"}))


def test_absolute_path_below_the_list_becomes_relative_to_it(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "v" / "a.mp4")
    (row,) = load_dataset_config(jsonl(tmp_path, {"video_path": str(tmp_path / "v" / "a.mp4"), "caption": "x"})
                                 ).sections[0].rows
    assert row.media.key == "v/a.mp4"


def test_manifest_lines_are_prompt_image_audio_video(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "a.mp4")
    make_video(tmp_path / "b.mp4")
    make_picture(tmp_path / "face.png")
    make_sound(tmp_path / "a.wav", 1.0)
    (tmp_path / "train.txt").write_text("A man speaks.@@face.png@@a.wav@@a.mp4\n\nA woman.@@@@a.wav@@b.mp4\n")
    toml = '[[datasets]]\nmanifest_file = "{d}/train.txt"\ncache_directory = "{d}/cache"\n'
    rows = load_dataset_config(write_dataset(tmp_path, toml)).sections[0].rows
    assert [(row.caption, row.media.key, sorted(row.sides)) for row in rows] == [
        ("A man speaks.", "a.mp4", ["audio", "reference"]), ("A woman.", "b.mp4", ["audio"])]


def test_bad_manifest_lines_are_told_with_their_numbers(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "a.mp4")
    (tmp_path / "train.txt").write_text("three@@fields@@a.mp4\nx@@no.png@@no.wav@@a.mp4\n")
    with pytest.raises(ConfigError) as raised:
        load_dataset_config(write_dataset(
            tmp_path, '[[datasets]]\nmanifest_file = "{d}/train.txt"\ncache_directory = "{d}/cache"\n'))
    told = str(raised.value)
    assert "train.txt:1: 3 fields; expected 4: prompt@@image@@audio@@video" in told
    assert "train.txt:2: reference path 'no.png'" in told
    assert "train.txt:2: audio path 'no.wav'" in told
