"""Several speakers in a dataset: their sounds, their places, and what a batch holds of them."""

import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import ConfigError
from common.media.sound import mono16k, read_sound
from common.speakers import SPEAKER_REGIONS
from dataset.batches import load_batch
from dataset.jobs import FeatureJob
from dataset.media import load_media
from dataset.open import Dataset
from dataset.plan import plan_training
from dataset.report import describe
from dataset.sampler import BatchSampler
from dataset.work import work_list
from tests.dataset.test_masks import make_mask
from tests.dataset.toys import MakeVideo, ToyAudio, ToyLatents, cache, make_sound, opened, write_dataset
from wan.encoders.features.masks import SpeakerRegionsEncoder
from wan.encoders.features.voice import VoiceEncoder

LIST = ('[[datasets]]\nvideo_jsonl_file = "{d}/list.jsonl"\ncache_directory = "{d}/cache"\nresolution = [48, 32]\n'
        'target_frames = [9]\n')
FOLDERS = ('[[datasets]]\nvideo_directory = "{d}/clips"\ncache_directory = "{d}/cache"\nresolution = [48, 32]\n'
           'target_frames = [9]\naudio_directories = ["{d}/left", "{d}/right"]\n')


@pytest.fixture()
def folder(tmp_path: Path, make_video: MakeVideo) -> Path:
    """Two clips of 21 frames, each with a sound of 0.84 s in two folders."""
    for number, stem in enumerate(("a", "b")):
        make_video(tmp_path / "clips" / f"{stem}.mp4", seed=number)
        for side, rate in (("left", 16000), ("right", 24000)):
            make_sound(tmp_path / side / f"{stem}.wav", 0.84, rate)
    return tmp_path


def listed(folder: Path, **more: object) -> Dataset:
    """Clip a with two sounds, and clip b with one; `more` are keys of the first line."""
    first = {"video_path": "clips/a.mp4", "caption": "", "audio_paths": ["left/a.wav", "right/a.wav"], **more}
    second = {"video_path": "clips/b.mp4", "caption": "", "audio_path": "left/b.wav"}
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, (first, second))))
    return opened(write_dataset(folder, LIST))


def encoders(weights: Path) -> list[Any]:
    audio = ToyAudio(weights)
    regions = SpeakerRegionsEncoder()
    return [ToyLatents(weights), audio, VoiceEncoder(audio, 2), regions]


def test_every_speaker_has_a_sound_and_they_stand_side_by_side(folder: Path) -> None:
    two, one = listed(folder).items
    assert [sound.file.key for sound in two.sounds] == ["audio:left/a.wav", "audio2:right/a.wav"]
    assert [two.has(need) for need in ("sound", "voice2", "voice3", SPEAKER_REGIONS)] == [True, True, False, True]
    assert two.boxes == ((0, 0, 0.5, 1), (0.5, 0, 1, 1)) and one.boxes == () and not one.has(SPEAKER_REGIONS)
    media = load_media(two, two.spans[0], ("sound", "voice2", SPEAKER_REGIONS))
    assert np.array_equal(media.voices[2], mono16k(read_sound(folder / "right" / "a.wav"))[:9 * 640])
    assert not np.array_equal(media.voices[2], media.sound)
    assert media.speaker_regions is not None and len(media.speaker_regions) == 2
    assert media.speaker_regions[0].shape == (1, 32, 48, 3) and media.speaker_regions[0][0, :, :24].min() == 255
    assert media.speaker_regions[0][0, :, 24:].max() == 0


def test_folders_give_each_video_of_the_entry_its_sounds(folder: Path) -> None:
    dataset = opened(write_dataset(folder, FOLDERS + 'speaker_boxes = ["0,0,0.25,1", "0.75,0,1,1"]\n'))
    assert [[sound.file.key for sound in item.sounds] for item in dataset.items] == [
        ["audio:a.wav", "audio2:a.wav"], ["audio:b.wav", "audio2:b.wav"]]
    assert dataset.items[0].boxes == ((0, 0, 0.25, 1), (0.75, 0, 1, 1)) and dataset.speakers == 2
    assert "  file x2  " in describe(dataset)
    (folder / "right" / "b.wav").unlink()
    with pytest.raises(ConfigError, match=r"b.mp4: no audio \(of speaker 2\) file for it in .*right"):
        opened(write_dataset(folder, FOLDERS))


@pytest.mark.parametrize(("keys", "words"), [
    ({"speaker_boxes": ["0,0,1,1"]}, r"list.jsonl:1 \(a.mp4\): 1 boxes of speakers and 2 sounds"),
    ({"speaker_boxes": ["0,0,1,1", "1,0,0,1"]}, "list.jsonl:1: speaker_boxes 1,0,0,1: covers nothing"),
    ({"speaker_boxes": "0,0,1,1"}, "speaker_boxes must be a list"),
    ({"audio_path": "left/a.wav"}, "audio_path and audio_paths say the same thing twice"),
    ({"audio_paths": "left/a.wav"}, "audio_paths must be a list of paths"),
    ({"audio_paths": ["left/a.wav", "right/c.wav"]}, r"audio \(of speaker 2\) path 'right/c.wav': no such file"),
    ({"speaker_mask_paths": ["mask.png"]}, "1 masks of speakers and 2 sounds"),
    ({"speaker_mask_paths": ["mask.png"], "speaker_boxes": ["0,0,1,1"]}, "say the same thing twice"),
])
def test_speakers_that_cannot_be_are_refused(folder: Path, keys: dict[str, object], words: str) -> None:
    make_mask(folder / "mask.png", (0, 0, 24, 32))
    with pytest.raises(ConfigError, match=words):
        listed(folder, **keys)


@pytest.mark.parametrize(("more", "words"), [
    ('audio_directory = "{d}/left"', "has audio_directory and audio_directories, which say the same thing twice"),
    ('audio = "none"', 'has audio = "none" and audio_directories'),
    ('speaker_boxes = ["0,0,1"]', "speaker_boxes: the box 0,0,1: expected left,top,right,bottom"),
    ('speaker_boxes = ["0,0,1,1"]', "a.mp4: 1 boxes of speakers and 2 sounds"),
])
def test_keys_that_disagree_are_told(folder: Path, more: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        opened(write_dataset(folder, FOLDERS + more + "\n"))


def test_the_sound_of_every_speaker_must_cover_the_clip(folder: Path) -> None:
    make_sound(folder / "right" / "a.wav", 0.2)
    with pytest.raises(ConfigError, match=r"a.mp4: the sound a.wav misses 4.0 frames \(0.16 s\) of a clip of 9"):
        opened(write_dataset(folder, FOLDERS))
    trimmed = opened(write_dataset(folder, FOLDERS + 'audio_short = "trim"\n'))
    assert [item.name for item in trimmed.items] == ["b.mp4"]
    assert [one.name for one in trimmed.dropped] == ["a.mp4"]


def test_a_batch_holds_voices_and_regions_of_clips_with_equally_many_speakers(folder: Path, weights: Path) -> None:
    make_mask(folder / "left.png", (0, 0, 16, 32))
    make_mask(folder / "right.png", (16, 0, 48, 16))
    dataset = listed(folder, speaker_mask_paths=["left.png", "right.png"])
    all_encoders = encoders(weights)
    assert len(cache(dataset, all_encoders)) == 2 + 2 + 1 + 1
    plan = plan_training(dataset, [one.spec for one in all_encoders])
    batches = {batch.items[0].item.name: batch.features
               for batch in map(load_batch, BatchSampler(plan, seed=0, epoch=0))}
    two, one = batches["clips/a.mp4"], batches["clips/b.mp4"]
    assert two.features.keys() == one.features.keys() == {"audio"}
    assert (len(two.voices), len(one.voices)) == (1, 0) and one.regions is None and one.present == two.present == {}
    assert two.voices[0].keys() == two.features["audio"].keys()
    assert not torch.equal(two.voices[0]["states"], two.features["audio"]["states"])
    assert two.regions is not None and two.regions.dtype == torch.float32 and two.regions.shape == (1, 2, 3, 4, 6)
    assert two.regions[0, :, 2].sum((1, 2)).tolist() == [8, 8]


def test_a_sound_or_a_place_that_changed_makes_its_own_feature_stale(folder: Path, weights: Path) -> None:
    all_encoders = encoders(weights)
    jobs = [FeatureJob.of(one) for one in all_encoders]
    cache(listed(folder), all_encoders)

    def stale(dataset: Dataset) -> dict[str, str]:
        return {entry.name: entry.state.field for entry in work_list(dataset, jobs) if entry.state.kind != "fresh"}

    assert stale(listed(folder)) == {}
    make_sound(folder / "right" / "a.wav", 0.9)
    assert stale(listed(folder)) == {"clips/a.mp4 audio2": "audio"}
    cache(listed(folder), all_encoders)
    assert stale(listed(folder, speaker_boxes=["0,0,0.5,1", "0.5,0,1,1"])) == {}, "what side by side means"
    assert stale(listed(folder, speaker_boxes=["0,0,0.4,1", "0.5,0,1,1"])) == {
        "clips/a.mp4 frames 0-8 speaker_regions": "speakers"}


def test_absent_folders_of_speakers_are_taken_from_the_cache(folder: Path, weights: Path) -> None:
    toml = write_dataset(folder, FOLDERS)
    all_encoders = encoders(weights)
    cache(opened(toml), all_encoders)
    for name in ("left", "right", "clips"):
        shutil.rmtree(folder / name)
    jobs = [FeatureJob.of(one) for one in all_encoders]
    states = [entry.state.kind for entry in work_list(opened(toml), jobs)]
    assert states == ["unchecked"] * 8
