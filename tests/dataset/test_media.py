"""Media of a clip: pictures at the bucket's size, and the sound of the same moments."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import MediaError
from common.media.sound import Sound, mono16k, read_sound
from common.media.video import read_frames, write_video
from dataset.media import load_media
from dataset.spans import Span
from tests.dataset.toys import MakeVideo, make_picture, make_sound, opened, write_dataset

BASE = ('[[datasets]]\nvideo_directory = "{d}/clips"\nresolution = [48, 32]\ntarget_frames = [9]\n'
        'frame_extraction = "chunk"\n')


def test_frames_are_those_of_the_span_at_the_bucket_size(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "clips" / "a.mp4", frames=30, size=(96, 64))
    item = opened(write_dataset(tmp_path, BASE + "target_fps = 25\n")).items[0]
    media = load_media(item, item.spans[1], ("frames", "caption"))
    assert media.frames is not None
    assert media.frames.shape == (9, 32, 48, 3)
    assert np.array_equal(media.frames, read_frames(path, fps=25, start_frame=9, count=9, size=(48, 32)))
    assert (media.n_frames, media.fps, media.caption, media.sound) == (9, 25.0, "a clip", None)


def test_sound_of_a_clip_is_that_of_its_moments(tmp_path: Path) -> None:
    # A tone that climbs by a step every frame: each video frame has its own loudness.
    levels = np.repeat(np.linspace(0.05, 0.5, 25), 640).astype(np.float32)
    pictures = (np.full((32, 48, 3), 9 * index, np.uint8) for index in range(25))
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", pictures, fps=25, sound=Sound(levels[None], 16000))
    (tmp_path / "clips" / "a.txt").write_text("")
    item = opened(write_dataset(tmp_path, BASE + 'audio = "clip"\n')).items[0]
    whole = load_media(item, None, ("sound",)).sound
    clip = load_media(item, item.spans[1], ("sound",)).sound
    assert whole is not None
    assert clip is not None
    assert (len(whole), len(clip)) == (25 * 640, 9 * 640)
    assert np.array_equal(clip, whole[9 * 640:18 * 640])


def test_file_of_its_own_is_heard_from_its_first_sample(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=25)
    path = make_sound(tmp_path / "sound" / "a.wav", 1.2, rate=44100)
    item = opened(write_dataset(tmp_path, BASE + 'audio_directory = "{d}/sound"\n')).items[0]
    sound = load_media(item, None, ("sound",)).sound
    assert sound is not None
    assert np.array_equal(sound, mono16k(read_sound(path))[:16000])


def test_short_control_video_stands_still_at_its_end(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=20)
    make_video(tmp_path / "poses" / "a.mp4", frames=12, caption=None)
    item = opened(write_dataset(tmp_path, BASE + 'target_fps = 25\ncontrol_directory = "{d}/poses"\n')).items[0]
    control = load_media(item, item.spans[1], ("control",)).control
    assert control is not None
    assert control.shape == (9, 32, 48, 3)
    assert not np.array_equal(control[1], control[2])
    assert all(np.array_equal(control[2], frame) for frame in control[3:])
    late = load_media(item, Span(40, 5, 48, 32), ("control",)).control
    assert late is not None
    assert all(np.array_equal(control[2], frame) for frame in late)


def test_control_picture_of_a_video_stands_still(tmp_path: Path, make_video: MakeVideo) -> None:
    import json

    make_video(tmp_path / "a.mp4")
    make_picture(tmp_path / "pose.png", caption=None)
    (tmp_path / "list.jsonl").write_text(json.dumps({"video_path": "a.mp4", "caption": "", "control_path": "pose.png"}))
    item = opened(write_dataset(tmp_path, '[[datasets]]\nvideo_jsonl_file = "{d}/list.jsonl"\nresolution = [48, 32]\n'
                                          'cache_directory = "{d}/cache"\ntarget_frames = [5]\n')).items[0]
    control = load_media(item, item.spans[0], ("control",)).control
    assert control is not None
    assert control.shape == (5, 32, 48, 3)


def test_reference_is_the_first_frame_a_drawn_one_or_a_file(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "clips" / "a.mp4", frames=30)
    for rule in ("first", "random", "random_outside"):
        item = opened(write_dataset(tmp_path, BASE + f'target_fps = 25\nreference = "{rule}"\n')).items[0]
        span = item.spans[1]
        reference = load_media(item, span, ("reference",)).reference
        frame = item.reference_frame(span)
        assert frame == 9 or rule != "first"
        assert reference is not None
        assert np.array_equal(reference, read_frames(path, fps=25, start_frame=frame, count=1, size=(48, 32))[0])


def test_picture_is_its_own_reference_and_a_clip_of_one_frame(tmp_path: Path) -> None:
    make_picture(tmp_path / "pictures" / "p.png", size=(70, 50))
    item = opened(write_dataset(tmp_path, '[[datasets]]\nimage_directory = "{d}/pictures"\nresolution = 32\n')).items[0]
    media = load_media(item, item.spans[0], ("frames", "reference"))
    assert media.frames is not None
    assert media.frames.shape == (1, 32, 32, 3)
    assert np.array_equal(media.frames[0], media.reference)


def test_folder_of_pictures_is_read_one_frame_a_picture(tmp_path: Path) -> None:
    for number in range(9):
        make_picture(tmp_path / "clips" / "walk" / f"{number:03d}.png", seed=number, caption=None)
    (tmp_path / "clips" / "walk.txt").write_text("")
    item = opened(write_dataset(tmp_path, BASE)).items[0]
    media = load_media(item, item.spans[0], ("frames",))
    assert media.frames is not None
    assert len({frame.tobytes() for frame in media.frames}) == 9


def test_source_that_broke_meanwhile_is_named(tmp_path: Path, make_video: MakeVideo) -> None:
    path = make_video(tmp_path / "clips" / "a.mp4", frames=30)
    item = opened(write_dataset(tmp_path, BASE)).items[0]
    path.write_bytes(b"no video")
    with pytest.raises(MediaError, match=r"a\.mp4"):
        load_media(item, item.spans[0], ("frames",))
