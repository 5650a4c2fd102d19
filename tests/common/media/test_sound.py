"""Reading sound of every form, and cutting it on the pictures' clock."""

from fractions import Fraction
from pathlib import Path
import wave

import numpy as np
import pytest
from safetensors.torch import load_file
import soundfile

from common.errors import MediaError
from common.media.sound import Sound, missing_s, mono16k, read_sound
from tests.common.media.clips import lag, noise, steady, write_clip


@pytest.mark.parametrize(("name", "subtype", "tolerance"), [
    ("a.wav", "PCM_U8", 1 / 128), ("a.wav", "PCM_16", 1 / 32768), ("a.wav", "PCM_24", 1e-6), ("a.wav", "PCM_32", 1e-6),
    ("a.wav", "FLOAT", 0), ("a.wav", "DOUBLE", 1e-7), ("a.flac", "PCM_16", 1 / 32768), ("a.flac", "PCM_24", 1e-6),
    ("a.aiff", "PCM_16", 1 / 32768)])
@pytest.mark.parametrize("channels", [1, 2])
def test_lossless_formats_give_their_samples(tmp_path: Path, name: str, subtype: str, tolerance: float,
                                             channels: int) -> None:
    samples = noise(0.3, 22_050, channels)
    soundfile.write(tmp_path / name, samples.T, 22_050, subtype=subtype)
    sound = read_sound(tmp_path / name)
    assert sound.sample_rate == 22_050 and sound.start_s == 0 and sound.samples.dtype == np.float32
    np.testing.assert_allclose(sound.samples, samples, atol=tolerance)


@pytest.mark.parametrize(("name", "codec", "rate"), [
    ("a.mp3", "libmp3lame", 44_100), ("a.mp3", "libmp3lame", 16_000), ("a.m4a", "aac", 44_100), ("a.m4a", "aac", 8_000),
    ("a.opus", "libopus", 48_000), ("a.webm", "libopus", 48_000)])
def test_lossy_formats_are_neither_early_nor_late(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    import av

    samples = noise(1.5, rate)
    with av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(format=stream.codec_context.format, rate=rate,
                                      frame_size=stream.codec_context.frame_size or 960)
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(block))
        out.mux(stream.encode(None))
    found = read_sound(tmp_path / name).samples[0]
    assert abs(lag(found[: rate // 2], samples[0, : rate // 2])) <= rate // 1000
    assert abs(len(found) - samples.shape[1]) <= 1152 + rate // 1000


def test_ogg_vorbis_is_read(tmp_path: Path) -> None:
    samples = noise(1.0, 22_050)
    soundfile.write(tmp_path / "a.ogg", samples.T, 22_050, format="OGG", subtype="VORBIS")
    found = read_sound(tmp_path / "a.ogg").samples
    assert found.shape == samples.shape and lag(found[0], samples[0]) == 0


def test_rate_and_channels_become_mono_at_16_khz_by_the_mean(tmp_path: Path) -> None:
    t = np.arange(44_100) / 44_100
    left, right = np.sin(2 * np.pi * 300 * t), np.sin(2 * np.pi * 500 * t)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 44_100, subtype="FLOAT")
    mono = read_sound(tmp_path / "a.wav").mono_16k
    assert len(mono) == 16_000
    t = np.arange(16_000) / 16_000
    expected = (np.sin(2 * np.pi * 300 * t) + np.sin(2 * np.pi * 500 * t)) / 2
    assert np.abs(mono - expected)[100:-100].max() < 1e-3


@pytest.mark.parametrize("case", ["mono16k", "stereo44k"])
def test_waveform_equals_the_original_loader(golden: Path, case: str) -> None:
    file = {"mono16k": "speech_16k_mono.wav", "stereo44k": "speech_44k_stereo.wav"}[case]
    expected = load_file(golden / "omniavatar_features_io.safetensors")[f"{case}.waveform"].numpy()
    mono = read_sound(golden / file).mono_16k
    assert mono.shape == expected.shape
    assert np.abs(mono - expected).max() <= 2e-6


def test_span_is_cut_on_the_container_clock_with_silence_outside() -> None:
    samples = np.arange(1, 32_001, dtype=np.float32)[None]
    sound = Sound(samples, 16_000, start_s=0.5)
    assert mono16k(sound)[[0, -1]].tolist() == [1, 32_000]
    early = mono16k(sound, from_s=0.25, duration_s=0.5)
    assert len(early) == 8000 and not early[:4000].any() and early[4000] == 1
    late = mono16k(sound, from_s=2.25, duration_s=0.5)
    assert late[0] == 28_001 and late[3999] == 32_000 and not late[4000:].any()
    assert not mono16k(sound, from_s=9.0, duration_s=0.1).any()
    assert missing_s(sound, from_s=0.25, duration_s=0.5) == pytest.approx(0.25)
    assert missing_s(sound, from_s=1.0, duration_s=1.0) == 0
    assert missing_s(sound, from_s=2.25, duration_s=0.5) == pytest.approx(0.25)
    assert missing_s(sound, from_s=9.0, duration_s=0.5) == pytest.approx(0.5)


def test_stated_end_of_an_aac_track_is_kept(tmp_path: Path) -> None:
    samples = noise(1.0, 48_000)  # 46.9 blocks of 1024; the muxer writes the last one's true length
    path = write_clip(tmp_path / "a.mp4", steady(25, 25), samples=samples, rate=48_000)
    assert read_sound(path).samples.shape[1] == samples.shape[1]


def test_cover_picture_does_not_make_a_song_a_video(tmp_path: Path) -> None:
    import av

    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libmp3lame", rate=16_000, layout="mono")
        cover = out.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic.value
        out.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
        frame = av.AudioFrame.from_ndarray(noise(0.1, 16_000)[:, :1152].copy(), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        out.mux([*stream.encode(frame), *stream.encode(None)])
    assert read_sound(path).start_s == 0
    from common.media.video import probe_video

    with pytest.raises(MediaError, match="no moving pictures"):
        probe_video(path)


def test_hopeless_sound_is_refused_by_name(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "zero.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("not sound")
    write_clip(tmp_path / "mute.mp4", steady(5, 25))
    bad = noise(0.1, 16_000)
    bad[0, 50] = np.nan
    soundfile.write(tmp_path / "nan.wav", bad.T, 16_000, subtype="FLOAT")
    for name, reason in [("zero.wav", "no samples"), ("empty.wav", "0 bytes"), ("text.wav", "not a media file"),
                         ("mute.mp4", "no sound track"), ("missing.wav", "no such file"), ("nan.wav", "NaN")]:
        with pytest.raises(MediaError, match=reason) as caught:
            read_sound(tmp_path / name)
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.m4a"])
def test_cut_sound_is_refused_with_both_lengths(tmp_path: Path, name: str) -> None:
    samples = noise(5.0, 16_000)
    if name == "a.m4a":
        front = {"movflags": "+faststart"}
        write_clip(tmp_path / "v.mp4", steady(5, 25), samples=samples, rate=16_000, container=front)
        (tmp_path / "v.mp4").rename(tmp_path / name)
    else:
        soundfile.write(tmp_path / name, samples.T, 16_000, subtype="PCM_16")
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut short: its header tells of [45]\.\d+ s|damaged"):
        read_sound(tmp_path / name)


def test_flipped_bits_in_flac_are_an_error(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", noise(5.0, 16_000).T, 16_000)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    for place in range(len(data) // 4, len(data) * 3 // 4, 2000):
        data[place] ^= 0x10
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(MediaError, match="the sound is damaged"):
        read_sound(tmp_path / "a.flac")


def test_gap_in_the_time_stamps_becomes_silence(tmp_path: Path) -> None:
    import av

    samples = noise(1.0, 16_000)
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for start in range(0, 16_000, 1000):
            block = (samples[:, start:start + 1000] * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.time_base = 16_000, Fraction(1, 16_000)
            frame.pts = start + (8000 if start >= 5000 else 0)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    found = read_sound(path).samples[0]
    assert abs(len(found) - 24_000) <= 16
    assert not found[5100:12_900].any()
    assert abs(lag(found[13_000:], samples[0, 5000:])) <= 16
