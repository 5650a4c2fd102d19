"""Every real file of the shared material has the properties that its MANIFEST states."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from common.errors import MediaError
from common.media.image import read_image
from common.media.sound import missing_s, mono16k, read_sound
from common.media.video import count_frames, iter_frames, probe_video, read_frames

NTSC = Fraction(30000, 1001)
# name: (width, height, frames, fps, is_variable, start_s, sound (rate, seconds) or None), all from MANIFEST.md
VIDEOS = {
    "video/latentsync_demo1.mp4": (1080, 1920, 250, 25, False, 0, (44_100, 10.008)),
    "video/latentsync_demo3.mp4": (1080, 1920, 600, 30, False, 0, (44_100, 20.039)),
    "video/videoretalking_face1.mp4": (700, 700, 135, 22.0879, True, 0.03301, (44_100, 6.107)),
    "video/videoretalking_face3.mp4": (590, 590, 125, 25, False, 0, (44_100, 5.016)),
    "video/videoretalking_face4.mp4": (700, 700, 199, 30, False, 0, (44_100, 6.595)),
    "video/moore_talkinghead3.mp4": (578, 578, 141, NTSC, False, 7.341, (44_100, 11.982)),
    "video/real3dportrait_may_5s.mp4": (512, 512, 125, 25, False, 0, (48_000, 5.013)),
    "video/googlework_short.mp4": (320, 180, 1026, 29.9408, True, 0.834, (44_100, 35.016)),
    "video/intel_asl_book_noaudio.mkv": (640, 480, 109, 30, False, 0.033, None),
    "video/opencast_av_slides.mov": (640, 480, 21, 2.0073, True, 0, (44_100, 10.456)),
    "video/decord_rotated_90.mov": (320, 568, 3, 30, False, 0, None),
    "pose/moore_anyone-video-1_kps.mp4": (512, 704, 200, 30, False, 0, None),
    "pose/wan22_pose.mp4": (960, 540, 350, 50, False, 0, None),
    "camera/cameractrl_0f47577ab3441480.mp4": (384, 256, 16, 8, False, 0, None),
    "camera/cameractrl_0bf152ef84195293.mp4": (384, 256, 16, 8, False, 0, None),
    "camera/cameractrl_2c80f9eb0d3b2bb4.mp4": (384, 256, 16, 8, False, 0, None),
}
# name: (rate, channels, seconds, rms of the channels' mean)
SOUNDS = {
    "whisper_jfk.flac": (44_100, 2, 11.000, 0.1421), "omniavatar_0000.MP3": (44_100, 2, 6.008, 0.0448),
    "wan22_talk.wav": (44_100, 2, 5.016, 0.0794), "cosyvoice_zero_shot_prompt.wav": (24_000, 1, 3.480, 0.0725),
    "smstools_singing_female.wav": (44_100, 1, 6.173, 0.2050), "smstools_speech_male.wav": (44_100, 1, 5.631, 0.1204),
    "leopard_test_de.wav": (16_000, 1, 5.256, 0.0688), "leopard_test_fr.wav": (16_000, 1, 6.672, 0.1027),
    "popcorn_silence.mp3": (16_000, 1, 30.000, 0.0), "speechrecognition_stereo_24bit.wav": (44_100, 2, 2.745, 0.0663),
    "speechrecognition_mono_8bit.wav": (44_100, 1, 2.745, 0.0665),
    "speechrecognition_chinese.flac": (48_000, 1, 0.957, 0.0105),
    "longcat_introduce_man.mp3": (32_000, 1, 12.584, 0.0369),
    "longcat_introduce_woman.mp3": (32_000, 1, 11.180, 0.0901),
    "librosa_5703-47212-0000.ogg": (22_050, 1, 14.840, 0.1121),
    "clearervoice_p232_005.wav": (48_000, 1, 6.247, 0.1043), "google_commercial_mono.wav": (8_000, 1, 45.300, 0.0298),
    "echomimicv3_02.WAV": (44_100, 2, 6.478, 0.0954),
}
# name: (width, height as shown, word of the note or None)
IMAGES = {
    "omniavatar_0000.jpeg": (1472, 1104, None), "skimage_astronaut.png": (512, 512, None),
    "lightx2v_woman.jpeg": (800, 450, None), "iclight_i6.jpg": (512, 768, None),
    "iclight_alter_i6.webp": (896, 1344, None),
    "echomimicv3_02.jpg": (640, 1138, None), "echomimicv2_1168.png": (1024, 1024, "JPEG data"),
    "longcat_introduce.png": (1378, 851, None), "exif_portrait_6.jpg": (1200, 1800, "orientation 6"),
    "moore_anyone-1.png": (463, 615, None),
}


def test_the_tables_name_every_file(shared: Path) -> None:
    data = shared / "data"
    found = {f"{folder}/{file.name}" for folder in ("video", "pose", "camera")
             for file in (data / folder).iterdir() if file.suffix in (".mp4", ".mov", ".mkv")}
    assert found == set(VIDEOS)
    assert {file.name for file in (data / "audio").iterdir()} == set(SOUNDS)
    assert {file.name for file in (data / "image").iterdir()} == set(IMAGES)


@pytest.mark.parametrize("name", VIDEOS)
def test_video_is_what_the_manifest_says(shared: Path, name: str) -> None:
    width, height, frames, fps, is_variable, start_s, sound_facts = VIDEOS[name]
    path = shared / "data" / name
    info = probe_video(path)
    assert (info.width, info.height, info.frames, info.is_variable) == (width, height, frames, is_variable)
    assert float(info.fps or 0) == pytest.approx(float(fps), abs=1e-3)
    assert info.start_s == pytest.approx(start_s, abs=1e-3)
    assert info.has_sound == (sound_facts is not None)
    if sound_facts is None:
        with pytest.raises(MediaError, match="no sound track"):
            read_sound(path)
        return
    sound = read_sound(path)
    assert (sound.sample_rate, len(sound.samples)) == (sound_facts[0], 2)
    # The MANIFEST counts the filling of the last block of 1024 samples, which the file says is none of the sound.
    assert 0 <= sound_facts[1] - sound.duration_s < 1024 / sound_facts[0] + 1e-3
    assert missing_s(sound, from_s=info.start_s, duration_s=info.duration_s or 0) < 0.09


@pytest.mark.parametrize("name", [name for name in VIDEOS if "latentsync" not in name])
def test_video_is_read_whole_at_25_fps(shared: Path, name: str) -> None:
    path = shared / "data" / name
    info = probe_video(path)
    frames = read_frames(path, fps=25, size=(64, 48))
    assert frames.shape == (count_frames(path, 25), 48, 64, 3)
    assert abs(len(frames) - (info.duration_s or 0) * 25) <= 0.5
    assert frames.std() > 1


def test_portrait_hevc_is_read_from_the_middle(shared: Path) -> None:
    path = shared / "data/video/latentsync_demo3.mp4"
    frames = read_frames(path, fps=25, start_frame=300, count=9, size=(48, 80))
    assert frames.shape == (9, 80, 48, 3) and frames.std() > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEOS)
def test_late_spans_of_real_files_equal_reading_from_the_beginning(shared: Path, name: str) -> None:
    path = shared / "data" / name
    total = count_frames(path, 25)
    starts = sorted({1, total // 3, total // 2, 3 * total // 4, total - 1} & set(range(total)))
    late = {start: read_frames(path, fps=25, start_frame=start, count=1)[0] for start in starts}
    for index, frame in enumerate(iter_frames(path, fps=25)):
        if index in late:
            np.testing.assert_array_equal(frame, late[index])


def test_sound_and_pictures_of_a_late_video_are_on_one_clock(shared: Path) -> None:
    # MANIFEST: mouth opening correlates with loudness at +0.16 s when aligned by time stamps (0.53), elsewhere <= 0.27.
    path = shared / "data/video/moore_talkinghead3.mp4"
    info, sound = probe_video(path), read_sound(path)
    assert sound.start_s == pytest.approx(0.021, abs=1e-3)
    frames = read_frames(path, fps=25)
    grey = frames[:, 330:440, 220:360].mean(axis=3)
    motion = np.abs(np.diff(grey, axis=0)).mean(axis=(1, 2))

    def agreement(from_s: float) -> float:
        heard = mono16k(sound, from_s=from_s, duration_s=len(frames) / 25).reshape(len(frames), -1)
        loudness = np.sqrt((heard**2).mean(axis=1))
        return max(float(np.corrcoef(motion[: len(motion) - lag], loudness[1 + lag:])[0, 1]) for lag in range(6))

    assert agreement(info.start_s) > agreement(sound.start_s) + 0.1


@pytest.mark.parametrize("name", SOUNDS)
def test_sound_is_what_the_manifest_says(shared: Path, name: str) -> None:
    rate, channels, seconds, rms = SOUNDS[name]
    sound = read_sound(shared / "data/audio" / name)
    assert (sound.sample_rate, len(sound.samples), sound.start_s) == (rate, channels, 0)
    assert sound.duration_s == pytest.approx(seconds, abs=1.1e-3)
    assert float(np.sqrt((sound.samples.mean(axis=0) ** 2).mean())) == pytest.approx(rms, abs=2e-3)
    assert len(sound.mono_16k) == pytest.approx(seconds * 16_000, abs=20)


@pytest.mark.parametrize("name", IMAGES)
def test_image_is_what_the_manifest_says(shared: Path, name: str) -> None:
    width, height, note = IMAGES[name]
    picture, notes = read_image(shared / "data/image" / name)
    assert picture.shape == (height, width, 3)
    assert (note in notes[0]) if note else notes == ()
