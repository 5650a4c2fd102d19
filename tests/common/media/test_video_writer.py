"""The video writer: sound that comes out where it was put, true colours, tags, and no half-written file."""

from collections.abc import Iterator
from fractions import Fraction
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import av
import numpy as np
from PIL import Image
import pytest

from common.errors import MediaError
from common.media.sound import Sound, read_sound
from common.media.video import probe_video, read_frames, write_png_frames, write_video
from tests.common.media.clips import lag, noise, numbered, numbers_of

FFMPEG = shutil.which("ffmpeg")


def pictures(count: int) -> Iterator[np.ndarray]:
    return (numbered(index) for index in range(count))


def decoded_by_pyav(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    assert frames[0].pts == 0
    return np.concatenate([frame.to_ndarray() for frame in frames], axis=1)


def decoded_by_ffmpeg(path: Path, channels: int) -> np.ndarray:
    assert FFMPEG is not None
    raw = subprocess.run([FFMPEG, "-v", "error", "-i", str(path), "-map", "0:a", "-f", "f32le", "-"],
                         capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.float32).reshape(-1, channels).T


@pytest.mark.parametrize("lead_s", [0.0, 0.04, 0.3])
@pytest.mark.parametrize(("rate", "channels"), [
    (8_000, 1), (11_025, 2), (16_000, 1), (22_050, 1), (24_000, 1), (32_000, 2), (44_100, 2), (48_000, 2), (96_000, 1)])
def test_sound_is_the_driving_sound_moved_by_the_lead_at_both_ends(tmp_path: Path, rate: int, channels: int,
                                                                   lead_s: float) -> None:
    samples = noise(1.2345, rate, channels)
    path = tmp_path / "out.mp4"
    write_video(path, pictures(38), fps=25, sound=Sound(samples, rate, start_s=7.0), lead_s=lead_s)
    lead, half = round(lead_s * rate), rate // 2
    decoded = [decoded_by_pyav(path), read_sound(path).samples]
    if FFMPEG:
        decoded.append(decoded_by_ffmpeg(path, channels))
    for found in decoded:
        assert found.shape == (channels, lead + samples.shape[1])
        assert np.abs(found[:, : max(lead - 64, 0)]).max(initial=0) < 0.05
        for channel in range(channels):
            body = found[channel, lead:]
            assert abs(lag(body[:half], samples[channel, :half])) <= rate // 1000
            assert abs(lag(body[-half:], samples[channel, -half:])) <= rate // 1000
            assert np.corrcoef(body, samples[channel])[0, 1] > 0.9


@pytest.mark.parametrize("samples_count", [1, 100, 1023, 1024, 1025, 2048])
def test_sound_of_a_block_or_more_keeps_its_length(tmp_path: Path, samples_count: int) -> None:
    samples = noise(0.2, 16_000)[:, :samples_count]
    write_video(tmp_path / "a.mp4", pictures(2), fps=25, sound=Sound(samples, 16_000))
    assert decoded_by_pyav(tmp_path / "a.mp4").shape[1] == max(samples_count, 1024)


def test_sound_longer_than_the_pictures_is_kept_whole(tmp_path: Path) -> None:
    samples = noise(3.0, 16_000)
    write_video(tmp_path / "a.mp4", pictures(5), fps=25, sound=Sound(samples, 16_000))
    assert decoded_by_pyav(tmp_path / "a.mp4").shape[1] == 48_000


@pytest.mark.parametrize(("rate", "written"), [(11_000, 11_025), (6_000, 7_350), (192_000, 96_000), (44_099, 44_100)])
def test_rates_that_aac_lacks_go_to_the_next(tmp_path: Path, rate: int, written: int) -> None:
    t = np.arange(rate) / rate
    tone = np.sin(2 * np.pi * 440 * t, dtype=np.float32)[None] * 0.5
    write_video(tmp_path / "a.mp4", pictures(26), fps=25, sound=Sound(tone, rate))
    sound = read_sound(tmp_path / "a.mp4")
    assert sound.sample_rate == written
    assert sound.duration_s == pytest.approx(1.0, abs=1e-3)


def test_many_channels_are_kept_up_to_six_and_then_mixed(tmp_path: Path) -> None:
    for channels, expected in [(6, 6), (3, 3), (8, 1)]:
        write_video(tmp_path / "a.mp4", pictures(13), fps=25, sound=Sound(noise(0.5, 16_000, channels), 16_000))
        assert len(read_sound(tmp_path / "a.mp4").samples) == expected


@pytest.mark.parametrize("fps", [16, 25, 30, 23.976, 29.97, Fraction(30000, 1001)])
def test_pictures_come_back_in_order_at_the_rate(tmp_path: Path, fps: float) -> None:
    write_video(tmp_path / "a.mp4", pictures(40), fps=fps)
    info = probe_video(tmp_path / "a.mp4")
    assert (info.frames, info.start_s, info.has_sound, info.is_variable) == (40, 0.0, False, False)
    assert info.duration_s == pytest.approx(40 / fps, abs=1e-3)
    assert numbers_of(read_frames(tmp_path / "a.mp4", fps=fps)) == list(range(40))


def test_colours_are_bt709_tagged_and_true(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (120, 130, 40)]
    frames = [np.full((64, 96, 3), colour, np.uint8) for colour in colours for _ in range(3)]
    write_video(tmp_path / "a.mp4", frames, fps=25)
    found = read_frames(tmp_path / "a.mp4", fps=25)
    for index, colour in enumerate(colours):
        assert np.abs(found[3 * index + 1].mean(axis=(0, 1)) - colour).max() <= 2
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        frame = next(container.decode(video=0))
        # bt709 red: 16 + 219*0.2126 = 62.6
        assert abs(float(frame.to_ndarray(format="yuv420p")[:64].mean()) - 62.6) < 1


def test_index_stands_in_front_and_tags_say_that_it_was_generated(tmp_path: Path) -> None:
    tags = {"title": "ünï 空", "comment": json.dumps({"seed": 1})}
    write_video(tmp_path / "a.mp4", pictures(5), fps=25, tags=tags)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.metadata["title"] == "ünï 空"
        assert container.metadata["comment"] == '{"seed": 1}'
        assert "Generated by OmniTuner" in container.metadata["description"]
    write_video(tmp_path / "a.mp4", pictures(5), fps=25)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert "Generated by OmniTuner" in container.metadata["comment"]


def test_frames_are_taken_one_by_one(tmp_path: Path) -> None:
    alive: list[int] = []
    most = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            if self.base is None:
                alive.pop()

    def frames() -> Iterator[np.ndarray]:
        nonlocal most
        for _ in range(50):
            alive.append(1)
            most = max(most, len(alive))
            yield np.zeros((32, 32, 3), np.uint8).copy().view(Counted).copy()

    write_video(tmp_path / "a.mp4", frames(), fps=25)
    assert most <= 4


@pytest.mark.parametrize(("frames", "reason"), [
    ([], "no frames"), ([np.zeros((33, 32, 3), np.uint8)], "must be even"),
    ([np.zeros((32, 32), np.uint8)], "must be uint8"), ([np.zeros((32, 32, 3), np.float32)], "must be uint8"),
    ([np.zeros((32, 32, 3), np.uint8), np.zeros((32, 64, 3), np.uint8)], "frame 1")])
def test_wrong_frames_leave_the_old_file_untouched(tmp_path: Path, frames: list[np.ndarray], reason: str) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")
    with pytest.raises(MediaError, match=reason):
        write_video(path, frames, fps=25)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.mp4"]


def test_failure_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield numbered(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_video(tmp_path / "a.mp4", frames(), fps=25)
    with pytest.raises(KeyboardInterrupt):
        write_png_frames(tmp_path / "png", frames())
    assert os.listdir(tmp_path) == ["png"] and os.listdir(tmp_path / "png") == []


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits there")
def test_full_disk_is_an_oserror_and_leaves_nothing(tmp_path: Path, root: Path) -> None:
    script = """
import resource, signal, sys, errno
import numpy as np
from common.media.video_writer import write_video
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
rng = np.random.default_rng(0)
try:
    write_video(sys.argv[1], (rng.integers(0, 256, (128, 128, 3)).astype(np.uint8) for _ in range(60)), fps=25)
except OSError as error:
    sys.exit(0 if error.errno == errno.EFBIG else 3)
sys.exit(4)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.mp4")], cwd=root, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == []


def test_png_frames_are_exact_and_numbered(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3)).astype(np.uint8)
    paths = write_png_frames(tmp_path / "out", frames)
    assert [path.name for path in paths] == ["00000.png", "00001.png", "00002.png"]
    assert sorted(os.listdir(tmp_path / "out")) == [path.name for path in paths]
    np.testing.assert_array_equal(read_frames(tmp_path / "out", fps=25), frames)
    with Image.open(paths[0]) as image:
        assert "Generated by OmniTuner" in image.info["Comment"]
