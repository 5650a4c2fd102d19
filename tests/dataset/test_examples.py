"""Every example TOML loads, and its dataset opens, over small media put where it looks for them."""

import json
from pathlib import Path
import tomllib
from typing import Any

import pytest

from dataset.config import load_dataset_config
from dataset.open import open_dataset
from dataset.report import describe
from tests.conftest import ROOT
from tests.dataset.toys import MakeVideo, make_picture, make_sound

EXAMPLES = sorted((ROOT / "dataset-toml").glob("*.toml"))


def put_media(entry: dict[str, Any], folder: Path, make_video: MakeVideo) -> None:
    for stem in ("one", "two"):
        video = folder / entry.get("video_directory", "data") / f"{stem}.mp4"
        make_video(video, frames=180, sound_s=7.2)
        if "control_directory" in entry:
            make_video(folder / entry["control_directory"] / f"{stem}.mp4", caption=None)
        if "audio_directory" in entry:
            make_sound(folder / entry["audio_directory"] / f"{stem}.wav", 7.2)
        for folder_of_speaker in entry.get("audio_directories", ()):
            make_sound(folder / folder_of_speaker / f"{stem}.wav", 7.2)
        for key in ("face_mask_directory", "lip_mask_directory"):
            if key in entry:
                make_picture(folder / entry[key] / f"{stem}.png", caption=None)
        if "image_directory" in entry:
            make_picture(folder / entry["image_directory"] / f"{stem}.png", size=(100, 80))
    make_picture(folder / "data" / "face.png")
    make_sound(folder / "data" / "one.wav", 7.2)
    if "video_jsonl_file" in entry:
        row = {"video_path": "data/one.mp4", "caption": "x", "audio_path": "data/one.wav",
               "reference_path": "data/face.png"}
        (folder / entry["video_jsonl_file"]).write_text(json.dumps(row))
    if "image_jsonl_file" in entry:
        (folder / entry["image_jsonl_file"]).write_text(json.dumps({"image_path": "data/face.png", "caption": "x"}))
    if "manifest_file" in entry:
        (folder / entry["manifest_file"]).write_text("Someone speaks.@@data/face.png@@data/one.wav@@data/one.mp4\n")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_opens(path: Path, tmp_path: Path, make_video: MakeVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["datasets"]
    for entry in entries:
        put_media(entry, tmp_path, make_video)
    config = load_dataset_config(path)
    assert len(config.sections) == len(entries)
    opened = open_dataset(config)
    assert {item.section_index for item in opened.items} == set(range(len(entries)))
    assert not opened.dropped
    assert not opened.failed
    assert describe(opened)


def test_there_is_an_example_of_every_kind_of_source() -> None:
    from dataset.schema import SOURCE_KEYS

    text = "\n".join(path.read_text(encoding="utf-8") for path in EXAMPLES)
    assert all(f"\n{key} = " in text for key in SOURCE_KEYS)
