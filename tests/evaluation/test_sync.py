"""The sync meter, on heads rendered here and on the shipped clips."""

from pathlib import Path

import numpy as np
import pytest

from common.media.sound import Sound, read_sound
from common.media.video import read_frames, write_video
from evaluation.mouth import NoMouthError, mouth_opening, mouth_openings
from evaluation.sync import measure_sync, speech_envelope, sync_of
from tools.talking_heads import FPS, Face, draw_face, render_clip
from tools.talking_heads import mouth_opening as law

RATE = 16_000
FRAMES = 70
FACES = (500, 502, 503, 507, 508, 512)


def made_up_speech(seed: int, frames: int = FRAMES) -> np.ndarray:
    """Noise in syllables of random length and loudness, with pauses, at 16 kHz."""
    rng = np.random.default_rng([seed, 77])
    parts: list[np.ndarray] = []
    while sum(map(len, parts)) < frames * RATE // FPS:
        length = int(rng.uniform(0.10, 0.30) * RATE)
        loud = rng.choice([0.0, 0.15, 0.4, 0.8]) * np.hanning(length)
        parts.append(loud * rng.normal(0, 0.3, length))
    return np.concatenate(parts)[:frames * RATE // FPS].astype(np.float32)


def clip_of(seed: int, samples: np.ndarray, frames: int = FRAMES) -> np.ndarray:
    return render_clip(draw_face(seed), law(samples, RATE, frames), 128, seed)


def degraded(clip: np.ndarray, how: str) -> np.ndarray:
    import cv2

    rng = np.random.default_rng(5)
    if how == "gaussian":
        return np.stack([cv2.GaussianBlur(frame, (0, 0), 2.5) for frame in clip])
    if how == "downscaled":
        return np.stack([cv2.resize(cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA), (128, 128),
                                    interpolation=cv2.INTER_CUBIC) for frame in clip])
    if how == "pale":
        soft = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in clip]) * 0.7 + 40
        return (soft + rng.normal(0, 5, clip.shape)).clip(0, 255).astype(np.uint8)
    return (clip + rng.normal(0, 12, clip.shape)).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def clips() -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Face seed → (frames, samples)."""
    return {seed: (clip_of(seed, made_up_speech(seed)), made_up_speech(seed)) for seed in FACES}


def test_the_faces_of_these_tests_differ_in_skin_hair_and_light() -> None:
    faces = [draw_face(seed) for seed in FACES]
    assert len({face.skin for face in faces}) >= 3
    assert {face.long_hair for face in faces} == {True, False}
    assert min(face.light for face in faces) < -0.05 and max(face.light for face in faces) > 0.05


def test_a_rendered_mouth_follows_its_own_sound(clips: dict) -> None:
    for seed, (frames, samples) in clips.items():
        result = measure_sync(frames, samples, sample_rate=RATE, fps=FPS)
        assert result.r is not None and result.r >= 0.95, (seed, str(result))
        assert result.best_lag == 0, (seed, str(result))


@pytest.mark.parametrize("delay", [5, -5, 12])
def test_a_moved_sound_is_read_as_its_delay(clips: dict, delay: int) -> None:
    for seed, (frames, samples) in clips.items():
        moved = np.roll(samples, delay * RATE // FPS)
        assert measure_sync(frames, moved, sample_rate=RATE, fps=FPS).best_lag == delay, seed


def test_other_sounds_do_not_correlate(clips: dict) -> None:
    values = [measure_sync(frames, made_up_speech(other), sample_rate=RATE, fps=FPS).r
              for frames, _ in clips.values() for other in range(8)]
    assert abs(np.mean(values)) < 0.1
    assert np.abs(values).max() < 0.6


@pytest.mark.parametrize("how", ["gaussian", "downscaled", "noise", "pale"])
def test_blurred_noisy_and_pale_copies_measure_nearly_as_well(clips: dict, how: str) -> None:
    for seed, (frames, samples) in clips.items():
        result = measure_sync(degraded(frames, how), samples, sample_rate=RATE, fps=FPS)
        assert result.r is not None and result.r >= 0.9, (seed, how, str(result))
        assert result.best_lag == 0


def test_a_written_video_measures_like_its_frames(tmp_path: Path, clips: dict) -> None:
    frames, samples = clips[FACES[0]]
    write_video(tmp_path / "clip.mp4", frames, fps=FPS, sound=Sound(samples[None], RATE))
    again = measure_sync(read_frames(tmp_path / "clip.mp4", fps=FPS), read_sound(tmp_path / "clip.mp4").mono_16k,
                         sample_rate=RATE, fps=FPS)
    assert again.r is not None and again.r >= 0.95
    assert again.best_lag == 0


@pytest.mark.parametrize("name", ["head_000", "head_003"])
def test_shipped_clips_are_in_sync(root: Path, name: str) -> None:
    path = root / "examples" / "demo" / "clips" / f"{name}.mp4"
    result = measure_sync(read_frames(path, fps=FPS), read_sound(path).mono_16k, sample_rate=RATE, fps=FPS)
    assert result.r is not None and result.r >= 0.95
    assert result.best_lag == 0


def test_synthesised_speech_drives_a_new_face(root: Path) -> None:
    sound = read_sound(root / "examples" / "demo" / "speech.wav").mono_16k
    frames = len(sound) * FPS // RATE
    result = measure_sync(clip_of(900, sound, frames), sound, sample_rate=RATE, fps=FPS)
    assert result.r is not None and result.r >= 0.95
    assert result.best_lag == 0


def test_a_picture_without_a_mouth_is_unavailable(clips: dict) -> None:
    rng = np.random.default_rng(0)
    wall = np.full((30, 128, 128, 3), (178, 140, 72), np.uint8)
    noise = rng.integers(0, 256, (30, 128, 128, 3)).astype(np.uint8)
    frames, samples = clips[FACES[0]]
    upper_half = frames[:30, :70]
    for pictures in (wall, noise, upper_half):
        result = measure_sync(pictures, samples, sample_rate=RATE, fps=FPS)
        assert not result.is_available
        assert str(result) == "unavailable: no mouth found"
    with pytest.raises(NoMouthError, match="no mouth found"):
        mouth_opening(wall)


def test_a_mouth_that_is_seen_only_in_the_first_frames_is_unavailable(clips: dict) -> None:
    frames, samples = clips[FACES[1]]
    lost = frames.copy()
    lost[20:] = frames.mean((0, 1, 2)).astype(np.uint8)
    assert str(measure_sync(lost, samples, sample_rate=RATE, fps=FPS)) == "unavailable: no mouth found"


def test_silence_and_still_mouths_are_unavailable(clips: dict) -> None:
    frames, samples = clips[FACES[0]]
    silent = measure_sync(frames, np.zeros_like(samples), sample_rate=RATE, fps=FPS)
    assert str(silent) == "unavailable: the sound is silent or constant"
    still = measure_sync(np.repeat(frames[:1], FRAMES, axis=0), samples, sample_rate=RATE, fps=FPS)
    assert str(still) == "unavailable: the mouth does not move"
    short = measure_sync(frames[:8], samples, sample_rate=RATE, fps=FPS)
    assert "12 are needed" in str(short)


def test_frames_without_a_mouth_are_left_out_of_the_correlation() -> None:
    envelope = np.random.default_rng(1).uniform(0, 1, 60)
    opening = 0.2 + 0.3 * envelope
    opening[10:20] = np.nan
    result = sync_of(opening, envelope)
    assert result.r == pytest.approx(1.0)


def test_two_heads_are_measured_each_for_itself(clips: dict) -> None:
    (left, left_sound), (right, right_sound) = clips[FACES[1]], clips[FACES[2]]
    openings = mouth_openings(np.concatenate([left, right], axis=2))
    assert len(openings) == 2
    for opening, sound in zip(openings, (left_sound, right_sound), strict=True):
        result = sync_of(opening, speech_envelope(sound, RATE, FRAMES, FPS))
        assert result.r is not None and result.r >= 0.95


def test_the_envelope_is_loudness_normalised_and_bounded() -> None:
    samples = made_up_speech(3)
    envelope = speech_envelope(samples, RATE, FRAMES, FPS)
    np.testing.assert_allclose(speech_envelope(samples * 0.1, RATE, FRAMES, FPS), envelope, atol=1e-6)
    assert envelope.min() >= 0 and envelope.max() == 1
    assert not speech_envelope(samples[:0], RATE, 10, FPS).any()


def test_the_renderer_opens_mouths_by_the_envelope() -> None:
    samples = made_up_speech(4)
    np.testing.assert_array_equal(law(samples, RATE, FRAMES), speech_envelope(samples, RATE, FRAMES, FPS))
    assert isinstance(draw_face(0), Face)
