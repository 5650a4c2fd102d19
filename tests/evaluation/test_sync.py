"""The sync meter, on heads rendered here and on the shipped clips."""

from pathlib import Path

import numpy as np
import pytest

from common.media.sound import Sound, read_sound
from common.media.video import read_frames, write_video
from evaluation.mouth import NoMouthError, mouth_opening, mouth_openings
from evaluation.sync import correlation_at, measure_sync, speech_envelope, sync_of
from tools.heads.background import KINDS
from tools.heads.clip import render_clip
from tools.heads.laws import FPS, MouthCurves, mouth_curves
from tools.heads.laws import mouth_opening as law
from tools.heads.scene import draw_scene

RATE = 16_000
FRAMES = 70
SCENES = (500, 502, 503, 507, 508, 511, 517, 521, 538)
"""Between them every background, five skins, hats, glasses, light from both sides, still and drifting cameras."""


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
    return render_clip(draw_scene(seed), [mouth_curves(samples, RATE, frames)], size=128, frames=frames).pictures


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
    """Scene's seed → (frames, samples)."""
    return {seed: (clip_of(seed, made_up_speech(seed)), made_up_speech(seed)) for seed in SCENES}


def test_the_scenes_of_these_tests_differ_in_all_that_could_mislead_the_meter() -> None:
    scenes = [draw_scene(seed) for seed in SCENES]
    faces = [scene.faces[0] for scene in scenes]
    assert {scene.background for scene in scenes} == set(KINDS)
    assert len({face.skin for face in faces}) >= 5 and {face.style for face in faces} == {"short", "long", "curly"}
    assert {face.hat is None for face in faces} == {face.has_glasses for face in faces} == {True, False}
    assert {scene.light.side > 0 for scene in scenes} == {scene.drift > 0 for scene in scenes} == {True, False}


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
    frames, samples = clips[SCENES[0]]
    write_video(tmp_path / "clip.mp4", frames, fps=FPS, sound=Sound(samples[None], RATE))
    again = measure_sync(read_frames(tmp_path / "clip.mp4", fps=FPS), read_sound(tmp_path / "clip.mp4").mono_16k,
                         sample_rate=RATE, fps=FPS)
    assert again.r is not None and again.r >= 0.95
    assert again.best_lag == 0


@pytest.mark.parametrize("spread", ["wide", "round", "jumping"])
def test_the_spread_of_a_mouth_does_not_count_as_opening(spread: str) -> None:
    for seed in SCENES[:4]:
        opening = law(made_up_speech(seed), RATE, FRAMES)
        values = {"wide": np.ones(FRAMES), "round": -np.ones(FRAMES), "jumping": np.resize([-1.0, -1, 1, 0, 1], FRAMES)}
        mouth = MouthCurves(opening, values[spread])
        measured = mouth_opening(render_clip(draw_scene(seed), [mouth], size=128, frames=FRAMES).pictures)
        assert np.corrcoef(measured, opening)[0, 1] >= 0.98, (seed, spread)


@pytest.mark.parametrize("name", ["head_000", "head_003", "head_010", "head_047"])
def test_shipped_clips_are_in_sync(root: Path, name: str) -> None:
    path = root / "examples" / "demo" / "clips" / f"{name}.mp4"
    result = measure_sync(read_frames(path, fps=FPS), read_sound(path).mono_16k, sample_rate=RATE, fps=FPS)
    assert result.r is not None and result.r >= 0.95
    assert result.best_lag == 0


def test_unseen_utterances_are_unlike_each_other(root: Path) -> None:
    sounds = [read_sound(root / "examples" / "demo" / "unseen" / f"speech_{i}.flac") for i in range(5)]
    assert {(sound.sample_rate, sound.samples.shape) for sound in sounds} == {(RATE, (1, 81 * RATE // FPS))}
    curves = [speech_envelope(sound.mono_16k, RATE, 81, FPS) for sound in sounds]
    values = np.corrcoef(curves)[np.triu_indices(5, 1)]
    assert np.abs(values).max() < 0.15
    assert min(curve.std() for curve in curves) >= 0.2


def test_an_unseen_utterance_drives_an_unseen_face(root: Path) -> None:
    sound = read_sound(root / "examples" / "demo" / "unseen" / "speech_0.flac").mono_16k
    result = measure_sync(clip_of(1000, sound, 81), sound, sample_rate=RATE, fps=FPS)
    assert result.r is not None and result.r >= 0.95
    assert result.best_lag == 0


def test_a_picture_without_a_mouth_is_unavailable(clips: dict) -> None:
    rng = np.random.default_rng(0)
    wall = np.full((30, 128, 128, 3), (178, 140, 72), np.uint8)
    noise = rng.integers(0, 256, (30, 128, 128, 3)).astype(np.uint8)
    frames, samples = clips[SCENES[0]]
    upper_half = frames[:30, :70]
    for pictures in (wall, noise, upper_half):
        result = measure_sync(pictures, samples, sample_rate=RATE, fps=FPS)
        assert not result.is_available
        assert str(result) == "unavailable: no mouth found"
    with pytest.raises(NoMouthError, match="no mouth found"):
        mouth_opening(wall)


def test_a_mouth_that_is_seen_only_in_the_first_frames_is_unavailable(clips: dict) -> None:
    frames, samples = clips[SCENES[1]]
    lost = frames.copy()
    lost[20:] = frames.mean((0, 1, 2)).astype(np.uint8)
    assert str(measure_sync(lost, samples, sample_rate=RATE, fps=FPS)) == "unavailable: no mouth found"


def test_silence_and_still_mouths_are_unavailable(clips: dict) -> None:
    frames, samples = clips[SCENES[0]]
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


@pytest.mark.parametrize("seed", [600, 606, 613])
def test_two_heads_are_measured_each_for_itself(seed: int) -> None:
    sounds = [made_up_speech(seed), made_up_speech(seed + 1000)]
    envelopes = [speech_envelope(sound, RATE, FRAMES, FPS) for sound in sounds]
    mouths = [mouth_curves(sound, RATE, FRAMES) for sound in sounds]
    openings = mouth_openings(render_clip(draw_scene(seed, 2), mouths, size=128, frames=FRAMES).pictures)
    assert len(openings) == 2
    between = correlation_at(*envelopes, lag=0)
    for own, other in ((0, 1), (1, 0)):
        result = sync_of(openings[own], envelopes[own])
        assert result.r is not None and result.r >= 0.95 and result.best_lag == 0
        assert correlation_at(openings[own], envelopes[other], 0) == pytest.approx(between, abs=0.1)
        assert abs(between) < 0.3


def test_eyebrows_and_red_hair_beside_a_mouth_are_no_second_one() -> None:
    for seed in (2006, 2013, 2016, 2017):
        mouth = mouth_curves(made_up_speech(seed), RATE, FRAMES)
        assert len(mouth_openings(render_clip(draw_scene(seed), [mouth], size=128, frames=FRAMES).pictures)) == 1


def test_the_envelope_is_loudness_normalised_and_bounded() -> None:
    samples = made_up_speech(3)
    envelope = speech_envelope(samples, RATE, FRAMES, FPS)
    np.testing.assert_allclose(speech_envelope(samples * 0.1, RATE, FRAMES, FPS), envelope, atol=1e-6)
    assert envelope.min() >= 0 and envelope.max() == 1
    assert not speech_envelope(samples[:0], RATE, 10, FPS).any()


def test_the_envelope_of_a_click_is_the_hann_window() -> None:
    """A click 0.1 s after the middle of frame 9 at 1 kHz; 160 samples of window weigh 80 together.

    Only frames 11 and 12, whose middles are 20 ms before and after it, hear it, with the same weight.
    """
    click = np.zeros(800)
    click[480] = 1
    envelope = speech_envelope(click, 1000, 20, 25)
    distance = np.abs((np.arange(20) + 0.5) / 25 - 0.480)
    weight = np.where(distance < 0.08, np.cos(np.pi * distance / 0.16) ** 2, 0)
    rms = np.sqrt(weight / 80)
    np.testing.assert_allclose(envelope, np.clip(rms / np.percentile(rms, 95), 0, 1) ** 0.7, atol=1e-9)
    assert np.flatnonzero(envelope).tolist() == [10, 11, 12, 13]
