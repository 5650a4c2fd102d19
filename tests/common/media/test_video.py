"""Reading videos: every hazard as a tiny file made here, pictures numbered so that each can be told."""

from fractions import Fraction
from pathlib import Path
import struct

import av
import cv2
import numpy as np
from PIL import Image
import pytest

from common.errors import MediaError
from common.media.sound import mono16k, read_sound
from common.media.video import count_frames, describe_video, probe_video, read_frames
from tests.common.media.clips import (
    HEIGHT,
    WIDTH,
    beeps,
    noise,
    number_of,
    numbered,
    numbers_of,
    onsets_s,
    set_display_matrix,
    steady,
    write_clip,
)

NTSC = Fraction(30000, 1001)
FILM = Fraction(24000, 1001)


@pytest.mark.parametrize(("name", "tick", "fps"), [
    ("a.mp4", Fraction(1, 90_000), 25), ("b.mkv", Fraction(1, 1000), NTSC), ("c.mov", Fraction(1, 600), 30),
    ("d.mkv", Fraction(1, 1000), FILM), ("e.mp4", Fraction(1, 25), 25),
])
def test_own_rate_gives_every_picture_once(tmp_path: Path, name: str, tick: Fraction, fps: Fraction | int) -> None:
    path = write_clip(tmp_path / name, steady(40, fps), tick=tick)
    info = probe_video(path)
    assert (info.width, info.height, info.frames, info.is_variable) == (WIDTH, HEIGHT, 40, False)
    assert info.fps == fps
    assert numbers_of(read_frames(path, fps=fps)) == list(range(40))


def test_span_and_size_are_applied_while_reading(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", steady(50, 50))
    assert count_frames(path, 25) == 25
    frames = read_frames(path, fps=25, start_frame=5, count=8, size=(80, 32))
    assert frames.shape == (8, 32, 80, 3)
    assert numbers_of(frames) == list(range(10, 26, 2))
    with pytest.raises(MediaError, match="has 25 frames at 25 fps; frames 20 to 27"):
        read_frames(path, fps=25, start_frame=20, count=8)


def test_source_fps_follows_musubi_tuner_and_ignores_time_stamps(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", steady(30, 10))
    assert count_frames(path, 16, source_fps=30) == 16
    assert numbers_of(read_frames(path, fps=16, source_fps=30))[:4] == [0, 2, 4, 6]
    assert count_frames(path, 16, source_fps=12) == 30


@pytest.mark.parametrize("fps", [16, 25])
@pytest.mark.parametrize("source", ["25", "29.97", "23.976", "variable"])
def test_flashes_and_beeps_stay_together(tmp_path: Path, source: str, fps: int) -> None:
    if source == "variable":  # 8 s at 30 fps, then 7 s at 10 fps: the header's average is wrong everywhere
        times = steady(240, 30) + [8 + index / 10 for index in range(70)]
    else:
        rate = {"25": Fraction(25), "29.97": NTSC, "23.976": FILM}[source]
        times = steady(int(15 * rate), rate)
    events = [min(times, key=lambda time, second=second: abs(time - second)) for second in range(1, 15)]
    dark, bright = np.zeros((32, 32, 3), np.uint8), np.full((32, 32, 3), 255, np.uint8)
    lit = [any(0 <= time - event < 0.2 for event in events) for time in times]
    path = write_clip(tmp_path / "a.mp4", times, pictures=[bright if on else dark for on in lit],
                      samples=beeps(events, 15, 48_000), rate=48_000)
    info = probe_video(path)
    assert info.is_variable == (source == "variable")
    frames = read_frames(path, fps=fps)
    sound = mono16k(read_sound(path), from_s=info.start_s, duration_s=len(frames) / fps)
    flashes = onsets_s(frames.mean(axis=(1, 2, 3)), fps, 128)
    tones = onsets_s(np.abs(sound), 16_000, 0.1)
    assert len(flashes) == len(tones) == 14
    assert max(abs(flash - tone) for flash, tone in zip(flashes, tones, strict=True)) < 0.5 / fps + 2e-3


@pytest.mark.parametrize("late", ["pictures", "sound"])
def test_late_streams_are_read_on_one_clock(tmp_path: Path, late: str) -> None:
    shift = 1.5
    times = [time + (shift if late == "pictures" else 0) for time in steady(50, 25)]
    pictures = [np.full((32, 32, 3), 255 * (index == 30), np.uint8) for index in range(50)]
    event = times[30]
    start_s = shift / 2 if late == "sound" else 0.0
    samples = beeps([event - start_s], 4 - start_s, 44_100)
    path = write_clip(tmp_path / "a.mp4", times, pictures=pictures, samples=samples, rate=44_100, sound_start_s=start_s)
    info, sound = probe_video(path), read_sound(path)
    assert info.start_s == pytest.approx(times[0], abs=1e-3)
    # AAC's encoder delay of 1024 samples stands before a late start, where no edit list hides it.
    assert sound.start_s == pytest.approx(start_s, abs=1024 / 44_100 + 2e-3)
    assert any("begin at" in note for note in info.notes)
    heard = mono16k(sound, from_s=info.start_s, duration_s=2.0)
    assert np.argmax(np.abs(heard) > 0.1) / 16_000 == pytest.approx(30 / 25, abs=2e-3)
    assert int(read_frames(path, fps=25).mean(axis=(1, 2, 3)).argmax()) == 30


@pytest.mark.parametrize(("options", "name"), [
    ({"g": "10", "bf": "3"}, "a.mp4"), ({"g": "10", "bf": "0"}, "b.mkv"),
    ({"x264-params": "keyint=10:open-gop=1:bframes=3"}, "c.mp4"),
    ({"x264-params": "keyint=10:intra-refresh=1"}, "d.mkv"),
    ({"x264-params": "keyint=10:open-gop=1:bframes=3"}, "e.ts"),
])
def test_late_spans_equal_reading_from_the_beginning(tmp_path: Path, options: dict[str, str], name: str) -> None:
    rng = np.random.default_rng(0)
    grain = rng.integers(-16, 16, (64, HEIGHT, WIDTH, 3))
    pictures = [np.clip(numbered(index) + grain[index], 0, 255).astype(np.uint8) for index in range(64)]
    path = write_clip(tmp_path / name, steady(64, 25), pictures=pictures, options=options)
    whole = read_frames(path, fps=25)
    assert len(whole) == 64
    for start in (1, 9, 10, 11, 25, 30, 39, 57, 63):
        np.testing.assert_array_equal(read_frames(path, fps=25, start_frame=start, count=1)[0], whole[start])
    np.testing.assert_array_equal(read_frames(path, fps=25, start_frame=33, count=20), whole[33:53])


@pytest.mark.parametrize(("matrix", "orientation"), [
    ((0, 1, -1, 0), 6), ((0, -1, 1, 0), 8), ((-1, 0, 0, -1), 3), ((-1, 0, 0, 1), 2), ((0, 1, 1, 0), 5)])
def test_display_matrix_turns_the_picture(tmp_path: Path, matrix: tuple[int, int, int, int], orientation: int) -> None:
    corner = np.zeros((32, 64, 3), np.uint8)
    corner[:16, :32] = 255
    path = write_clip(tmp_path / "a.mp4", steady(5, 25), pictures=[corner] * 5)
    set_display_matrix(path, matrix)
    # Stored top left goes: 6 top right, 8 bottom left, 3 bottom right, 2 top right, 5 top left.
    row, column = {6: (0, 1), 8: (1, 0), 3: (1, 1), 2: (0, 1), 5: (0, 0)}[orientation]
    info, frames = probe_video(path), read_frames(path, fps=25)
    assert info.orientation == orientation
    assert frames.shape[1:3] == (info.height, info.width) == ((64, 32) if orientation >= 5 else (32, 64))
    height, width = frames.shape[1:3]
    corners = frames[0, [height // 4, 3 * height // 4]][:, [width // 4, 3 * width // 4]].mean(axis=2)
    assert np.argwhere(corners > 128).tolist() == [[row, column]]


@pytest.mark.parametrize(("codec", "pix_fmt", "size"), [
    ("libx264", "yuv444p", (47, 63)), ("libx264", "yuvj420p", (48, 64)), ("libx264", "yuv420p10le", (48, 64)),
    ("libx265", "yuv420p", (48, 64)), ("mpeg4", "yuv420p", (48, 64)), ("ffv1", "bgra", (48, 64))])
def test_colours_survive_codecs_odd_sizes_and_ranges(tmp_path: Path, codec: str, pix_fmt: str,
                                                     size: tuple[int, int]) -> None:
    colours = [(255, 255, 255), (0, 0, 0), (200, 40, 60), (40, 180, 90)]
    pictures = [np.full((*size, 3), colour, np.uint8) for colour in colours for _ in range(5)]
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = write_clip(tmp_path / "a.mkv", steady(20, 25), pictures=pictures, codec=codec, pix_fmt=pix_fmt,
                      options=options, tick=Fraction(1, 25))
    frames = read_frames(path, fps=25)
    assert frames.shape == (20, *size, 3)
    for index, colour in enumerate(colours):
        assert np.abs(frames[5 * index + 2].mean(axis=(0, 1)) - colour).max() <= 6


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.webm", "libvpx"), ("b.webm", "libvpx-vp9"),
                                             ("a.mpg", "mpeg1video"), ("a.flv", "flv"), ("a.wmv", "wmv2")])
def test_other_containers_keep_their_pictures(tmp_path: Path, name: str, codec: str) -> None:
    hidden = {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8", "deadline": "good"}
    options = hidden if "webm" in name else {}
    path = write_clip(tmp_path / name, steady(40, 25), codec=codec, tick=Fraction(1, 25), options=options)
    assert numbers_of(read_frames(path, fps=25)) == list(range(40))


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", steady(5, 25), options={"x264-params": "sar=3/2"})
    info = probe_video(path)
    assert (info.width, info.height) == (WIDTH * 3 // 2, HEIGHT)
    assert read_frames(path, fps=25).shape[1:3] == (HEIGHT, WIDTH * 3 // 2)
    assert "pixels of 3:2 made square" in info.notes


def test_edit_list_hides_what_it_cuts(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", steady(50, 25), options={"g": "25"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:  # stream copy with a start before zero: the muxer writes an edit list
                shift = round(0.4 / stream.time_base) if stream.time_base else round(0.4 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                out.mux(packet)
    info = probe_video(cut)
    assert info.start_s == pytest.approx(0, abs=1e-3)
    assert numbers_of(read_frames(cut, fps=25)) == list(range(10, 50))


@pytest.mark.parametrize(("media_time", "first"), [(0, 0), (90_000, 25)])
def test_edit_list_that_leaves_packets_out_is_not_taken_for_a_cut_file(tmp_path: Path, media_time: int,
                                                                       first: int) -> None:
    path = write_clip(tmp_path / "a.mp4", steady(200, 25), options={"g": "10", "bf": "2"})
    data = bytearray(path.read_bytes())
    entry = data.index(b"elst") + 12  # duration on the movie's clock, first media time in ticks
    duration, delay = struct.unpack(">Ii", data[entry:entry + 8])
    data[entry:entry + 8] = struct.pack(">Ii", duration // 4, delay + media_time)
    path.write_bytes(data)
    assert numbers_of(read_frames(path, fps=25)) == list(range(first, first + 50))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_file_that_begins_between_key_frames_is_read_from_the_first_one(tmp_path: Path, codec: str) -> None:
    groups = {"libx265": {"x265-params": "log-level=none:keyint=20:min-keyint=20"}, "libx264": {"g": "20", "bf": "2"}}
    whole = write_clip(tmp_path / "whole.mkv", steady(60, 25), codec=codec, options=groups[codec])
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(source.demux(video=0)):
            if packet.size and index >= 7:
                packet.stream = stream
                out.mux(packet)
    info = probe_video(tmp_path / "cut.mkv")
    assert info.start_s == pytest.approx(20 / 25, abs=2e-3)
    assert any("lack their key frame" in note for note in info.notes)
    assert numbers_of(read_frames(tmp_path / "cut.mkv", fps=25)) == list(range(20, 60))


@pytest.mark.parametrize("faststart", [True, False])
def test_cut_files_are_refused_with_both_numbers(tmp_path: Path, faststart: bool) -> None:
    path = write_clip(tmp_path / "a.mp4", steady(100, 25), container={"movflags": "+faststart"} if faststart else {})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    with pytest.raises(MediaError, match="tells of 100 frames" if faststart else "a.mp4: damaged or not a media file"):
        probe_video(path)


def test_cut_matroska_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", steady(250, 25), options={"g": "25"})
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match="cut short"):
        probe_video(path)


def test_one_missing_frame_is_noted_and_the_rest_read(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", steady(100, 25), container={"movflags": "+faststart"}, options={"bf": "0"})
    path.write_bytes(path.read_bytes()[:-10])
    info = probe_video(path)
    assert info.frames == 99
    assert "header tells of 100 frames, 99 are there" in info.notes
    assert numbers_of(read_frames(path, fps=25)) == list(range(99))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_flipped_bits_are_an_error(tmp_path: Path, codec: str) -> None:
    # HEVC decoders notice damage only by the picture hashes that a file may carry.
    options = {"x265-params": "log-level=none:hash=1"} if codec == "libx265" else {}
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(20)]
    path = write_clip(tmp_path / "a.mkv", steady(20, 25), pictures=pictures, codec=codec, options=options)
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 4, len(data) * 3 // 4, 200):
        data[place] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"a\.mkv: damaged"):
        read_frames(path, fps=25)


def test_hopeless_files_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video")
    (tmp_path / "folder").mkdir()
    with av.open(str(tmp_path / "sound.mp4"), "w") as out:
        stream = out.add_stream("aac", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(noise(0.1, 16_000)[:, :1024].copy(), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        out.mux([*stream.encode(frame), *stream.encode(None)])
    for name, reason in [("empty.mp4", "0 bytes"), ("text.mp4", "not a media file"), ("missing.mp4", "no such file"),
                         ("sound.mp4", "no moving pictures"), ("folder", "no pictures")]:
        with pytest.raises(MediaError, match=reason) as caught:
            probe_video(tmp_path / name)
        assert name in str(caught.value)


def test_folder_of_pictures_gives_one_frame_a_picture_in_natural_order(tmp_path: Path) -> None:
    for index in (10, 2, 1, 0, 9):
        Image.fromarray(numbered(index)).save(tmp_path / f"f{index}.png")
    (tmp_path / "notes.txt").write_text("x")
    assert count_frames(tmp_path, 25) == 5
    assert numbers_of(read_frames(tmp_path, fps=25)) == [0, 1, 2, 9, 10]
    assert read_frames(tmp_path, fps=25, start_frame=1, count=2, size=(80, 32)).shape == (2, 32, 80, 3)
    assert probe_video(tmp_path).fps is None
    cv2.imwrite(str(tmp_path / "f11.png"), np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(MediaError, match="frame 5 is 8x8"):
        read_frames(tmp_path, fps=25)


def test_a_single_picture_is_one_frame(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [0.0])
    assert count_frames(path, 25) == 1
    assert number_of(read_frames(path, fps=25)[0]) == 0


def test_changed_file_is_scanned_again(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", steady(10, 25))
    assert count_frames(path, 25) == 10
    write_clip(path, steady(17, 25))
    assert count_frames(path, 25) == 17


def test_description_is_one_line(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", [0, 0.04, 0.12, 0.16], samples=noise(0.2, 16_000), rate=16_000)
    assert describe_video(path).startswith("h264 160x64, 4 frames in 0.1")
    assert "sound; variable frame rate" in describe_video(path)
