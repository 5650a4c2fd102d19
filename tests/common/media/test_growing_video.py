"""A video that plays while it grows, and the ordinary file that it becomes."""

from pathlib import Path
import shutil

import av
import numpy as np
import pytest

from common.errors import MediaError
from common.media.growing_video import GrowingVideo, finish_video
from common.media.sound import Sound, read_sound
from common.media.video import probe_video, read_frames, write_video
from tests.common.media.clips import numbered, numbers_of

RATE = 25
NOISE = Sound(0.1 * np.random.default_rng(0).standard_normal((2, 4 * 48_000)).astype(np.float32), 48_000)


def grown(path: Path, *, sound: Sound | None = NOISE, lead_s: float = 0.0, pieces: int = 3) -> Path:
    with GrowingVideo(path, fps=RATE, sound=sound, lead_s=lead_s) as video:
        for piece in range(pieces):
            video.append(numbered(30 * piece + k) for k in range(30))
        assert video.frames == 30 * pieces
    return path


def test_the_file_plays_while_it_grows(tmp_path):
    """After each piece all of its frames but the last half second can be read, in order and with the sound."""
    path = tmp_path / "growing.mp4"
    with GrowingVideo(path, fps=RATE, sound=NOISE) as video:
        for piece in range(3):
            video.append(numbered(30 * piece + k) for k in range(30))
            shutil.copy(path, tmp_path / "now.mp4")
            seen = numbers_of(read_frames(tmp_path / "now.mp4", fps=RATE))
            certain = 30 * (piece + 1) - 14
            assert seen[:certain] == list(range(certain))
            with av.open(str(tmp_path / "now.mp4")) as container:
                assert container.streams.audio


def test_what_was_appended_plays_to_the_last_frame_after_a_failure(tmp_path):
    path = tmp_path / "growing.mp4"
    with pytest.raises(RuntimeError, match="chunk 3"), GrowingVideo(path, fps=RATE, sound=NOISE) as video:
        for piece in range(2):
            video.append(numbered(30 * piece + k) for k in range(30))
        raise RuntimeError("chunk 3")
    assert numbers_of(read_frames(path, fps=RATE)) == list(range(60))


@pytest.mark.parametrize("lead_s", [0.0, 0.34])
def test_the_finished_file_is_an_ordinary_one_with_the_whole_sound(tmp_path, lead_s):
    finish_video(grown(tmp_path / "growing.mp4", lead_s=lead_s), tmp_path / "done.mp4", sound=NOISE, lead_s=lead_s,
                 tags={"title": "x"})
    write_video(tmp_path / "plain.mp4", (numbered(k) for k in range(90)), fps=RATE, sound=NOISE, lead_s=lead_s)
    done, plain = (probe_video(tmp_path / name) for name in ("done.mp4", "plain.mp4"))
    assert (done.width, done.height, done.frames, done.fps, done.start_s) == (
        plain.width, plain.height, plain.frames, plain.fps, plain.start_s)
    assert numbers_of(read_frames(tmp_path / "done.mp4", fps=RATE)) == list(range(90))
    sounds = [read_sound(tmp_path / name) for name in ("done.mp4", "plain.mp4")]
    assert sounds[0].samples.shape == sounds[1].samples.shape == (2, round((4 + lead_s) * 48_000))
    assert np.array_equal(sounds[0].samples, sounds[1].samples) and sounds[0].start_s == sounds[1].start_s
    data = (tmp_path / "done.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat") and b"moof" not in data
    with av.open(str(tmp_path / "done.mp4")) as container:
        assert "generated" in container.metadata["comment"].lower() and container.metadata["title"] == "x"
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)


def test_a_video_without_sound_grows_too(tmp_path):
    finish_video(grown(tmp_path / "growing.mp4", sound=None, pieces=1), tmp_path / "done.mp4")
    info = probe_video(tmp_path / "done.mp4")
    assert info.frames == 30 and not info.has_sound


def test_frames_of_another_size_are_refused(tmp_path):
    with GrowingVideo(tmp_path / "x.mp4", fps=RATE) as video:
        video.append([np.zeros((32, 48, 3), np.uint8)])
        with pytest.raises(MediaError, match="frame 1 is uint8"):
            video.append([np.zeros((32, 64, 3), np.uint8)])
    with GrowingVideo(tmp_path / "y.mp4", fps=RATE) as video, pytest.raises(MediaError, match="must be even"):
        video.append([np.zeros((31, 48, 3), np.uint8)])
