"""Several speakers: where they are, what each of them does to the picture, and the sound of all."""

import numpy as np
from PIL import Image
import pytest
import soundfile
import torch

from common.errors import ConfigError, MediaError
from common.media.sound import Sound, read_sound
from common.speakers import parse_box
from inference import generate, load_pipeline
from inference.speakers import mix, speaker_regions

RATE = 16_000


@pytest.fixture
def second(tmp_path):
    """0.4 s of another voice."""
    time = np.arange(round(0.4 * RATE)) / RATE
    path = tmp_path / "second.wav"
    soundfile.write(path, 0.4 * np.sin(2 * np.pi * 700 * time), RATE)
    return path


def planned(request):
    return load_pipeline(request).plan(request)


def test_speakers_stand_side_by_side_where_nothing_is_said(ask, second):
    regions = speaker_regions(ask(audio=second, audio2=[second]), (48, 32), (4, 6), "cover")
    assert regions.shape == (2, 4, 6) and torch.equal(regions.sum(0), torch.ones(4, 6))
    assert regions[0, :, :3].min() == 1 and regions[0, :, 3:].max() == 0
    three = speaker_regions(ask(audio=second, audio2=[second, second]), (48, 32), (4, 6), "cover")
    assert three.shape[0] == 3 and torch.equal(three.sum(0), torch.ones(4, 6))
    assert speaker_regions(ask(audio=second), (48, 32), (4, 6), "cover") is None


def test_boxes_and_masks_say_the_same(ask, second, tmp_path):
    picture = np.zeros((32, 48), np.uint8)
    picture[8:24, 12:36] = 255
    Image.fromarray(picture).save(tmp_path / "mask.png")
    box = speaker_regions(ask(audio=second, speaker_boxes=["0.25,0.25,0.75,0.75"]), (48, 32), (4, 6), "cover")
    mask = speaker_regions(ask(audio=second, speaker_masks=[tmp_path / "mask.png"]), (48, 32), (4, 6), "cover")
    assert torch.equal(box, mask) and box[0, 1, 2] == 1 and box[0, 0, 0] == 0 and box[0, 1, 1] == 0.5


@pytest.mark.parametrize(("settings", "words"), [
    ({"speaker_boxes": ["0,0,0.5,1", "0.5,0,1,1"]}, "2 speakers and 1 sound. Give each speaker a sound"),
    ({"speaker_boxes": ["0.5,0,0.5,1"]}, "covers nothing"),
    ({"speaker_boxes": ["left"]}, "expected left,top,right,bottom"),
    ({"speaker_masks": ["BLACK"]}, "covers nothing of the video. White is where"),
    ({"audio2": ["missing.wav"]}, "--audio2 missing.wav: no such file"),
    ({"audio": None, "audio2": ["SECOND"]}, "Give the first one's with --audio"),
])
def test_speakers_that_cannot_be_are_refused_before_models_load(ask_talking, second, tmp_path, settings, words):
    Image.new("L", (48, 32), 10).save(tmp_path / "black.png")
    files = {"BLACK": tmp_path / "black.png", "SECOND": second}
    values = {name: [files.get(one, one) for one in value] if isinstance(value, list) else value
              for name, value in settings.items()}
    with pytest.raises(ConfigError, match=words):
        planned(ask_talking(**values))


def test_sounds_are_added_up_at_the_first_ones_rate_and_channels():
    loud = Sound(np.full((2, 100), 0.75, np.float32), RATE)
    other = Sound(np.full((1, 50), 0.5, np.float32), RATE)
    both = mix([loud, other])
    assert both.samples.shape == (2, 100) and both.sample_rate == RATE
    np.testing.assert_allclose(both.samples[:, :50], 1.0)
    np.testing.assert_allclose(both.samples[:, 50:], 0.75 / 1.25, rtol=1e-6)
    assert mix([loud]) is loud
    assert mix([loud, Sound(np.zeros((1, 300), np.float32), 48_000)]).samples.shape == (2, 100)


def test_one_box_over_everything_is_one_speaker(ask_talking):
    whole, boxed = generate(ask_talking()), generate(ask_talking(speaker_boxes=["0,0,1,1"]))
    torch.testing.assert_close(whole.latents, boxed.latents, atol=1e-5, rtol=1e-4)


def test_each_voice_is_heard_on_its_own_and_all_in_the_video(ask_talking, second, speech, tmp_path):
    request = ask_talking(audio2=[second], save_path=tmp_path / "two.mp4")
    pipeline = load_pipeline(request)
    prepared = pipeline.prepare(pipeline.plan(request))
    assert len(prepared.sounds) == 2 and len(prepared.batch.voices) == 1
    assert prepared.batch.regions.shape == (1, 2, 4, 4, 6)
    assert prepared.batch.voices[0].keys() == prepared.batch.features["audio"].keys() == {"before", "states", "after"}
    alone = [pipeline.prepare(pipeline.plan(ask_talking(audio=path, video_length=13))) for path in (speech, second)]
    assert torch.equal(prepared.batch.features["audio"]["states"], alone[0].batch.features["audio"]["states"])
    assert torch.equal(prepared.batch.voices[0]["states"], alone[1].batch.features["audio"]["states"])

    first, both = pipeline.sample(alone[0]), pipeline.sample(prepared)
    assert not torch.equal(first, both)
    result = generate(request)
    written = read_sound(tmp_path / "two.mp4")
    assert written.samples.shape == read_sound(speech).samples.shape and result.video.shape[1] == 13


def test_one_channel_of_a_stereo_sound_can_be_heard(ask_talking, speech):
    left, right, both = (planned(ask_talking(audio_channel=channel)) for channel in (1, 2, None))
    whole = read_sound(speech).samples
    assert np.array_equal(left.scene.voices[0].samples, whole[:1])
    assert np.array_equal(right.scene.voices[0].samples, whole[1:]) and len(both.scene.voices[0].samples) == 2
    assert np.array_equal(left.written_sound.samples, whole)
    with pytest.raises(MediaError, match="--audio_channel 3: the sound has 2 channels"):
        planned(ask_talking(audio_channel=3))


def test_two_speakers_of_a_long_video(ask_talking, second, tmp_path):
    result = generate(ask_talking(audio2=[second], chunk_frames=9, overlap_frame=5, infer_steps=1))
    assert result.video.shape[1] == 13
    assert parse_box("0,0,0.5,1") == (0, 0, 0.5, 1)
