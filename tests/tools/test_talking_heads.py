"""Rendered talking heads: laws, scenes, clips, banks and files. None of these tests needs the speech engine."""

from pathlib import Path
import re
import subprocess
import sys

import numpy as np
import pytest

from common.errors import UserError
from common.media.sound import read_sound
from common.media.video import probe_video, read_frames
from evaluation.sync import correlation_at
from tools.heads.background import KINDS
from tools.heads.clip import render_clip
from tools.heads.face import draw_face
from tools.heads.laws import FPS, MouthCurves, mouth_curves, mouth_opening, mouth_spread
from tools.heads.scene import draw_scene
from tools.heads.speech import UNSEEN_VOICES, UNSEEN_WORDS, VOICES, WORDS, random_sentence, speak
from tools.heads.turns import random_piece, take_turns
from tools.heads.write import write_clip
from tools.tiny.bank import FIRST_SEED, make_bank

RATE = 16_000
CAPTION = re.compile(r"A talking head: a person with [a-z ,]+ in a [a-z]+ shirt, [a-z]+ wall( with [a-z ]+)?\.")


def tone(hertz: float, seconds: float, rate: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate).astype(np.float32)


def babble(seed: int, frames: int, rate: int = RATE) -> np.ndarray:
    """Harmonics and hiss whose loudness wanders, with gaps: `frames` frames of made-up speech."""
    rng = np.random.default_rng([seed, 3])
    times = np.arange(frames * rate // FPS) / rate
    first, second = rng.uniform(0, 6, 2)
    slow = np.clip(np.sin(2 * np.pi * 2.7 * times + first) + np.sin(7.9 * times + second), 0, None)
    voice = sum(np.sin(2 * np.pi * 120 * k * times) / k for k in range(1, 9))
    hiss = rng.normal(0, 1, len(times)) * (np.sin(11 * times) > 0.6)
    return (0.1 * slow * (voice + hiss)).astype(np.float32)


def still(frames: int, opening: float = 0.0, spread: float = 0.0) -> MouthCurves:
    return MouthCurves(np.full(frames, opening), np.full(frames, spread))


def test_a_steady_tone_opens_the_mouth_fully_at_once_and_to_the_end() -> None:
    np.testing.assert_allclose(mouth_opening(tone(250, 2), RATE, 50), 1, atol=1e-3)


def test_opening_follows_the_power_law_of_loudness() -> None:
    """Two levels, 1 and 0.25 of it; well inside each half the opening is 1 and 0.25 ** 0.7 = 0.3789."""
    sound = np.concatenate([tone(250, 2), 0.25 * tone(250, 2)])
    opening = mouth_opening(sound, RATE, 100)
    np.testing.assert_allclose(opening[:47], 1, atol=2e-3)
    np.testing.assert_allclose(opening[53:], 0.3789, atol=2e-3)
    assert (np.diff(opening[46:54]) < 1e-3).all()


def test_silence_closes_the_mouth_and_leaves_it_neither_wide_nor_round() -> None:
    curves = mouth_curves(np.zeros(2 * RATE, np.float32), RATE, 50)
    assert not curves.opening.any() and not curves.spread.any()
    sound = np.concatenate([tone(3000, 1), np.zeros(RATE, np.float32), tone(300, 1)])
    curves = mouth_curves(sound, RATE, 75)
    assert not curves.opening[27:48].any() and not curves.spread[27:48].any()
    assert (curves.opening[:22] > 0.95).all() and (curves.opening[53:] > 0.95).all()
    assert (curves.spread[:22] > 0.95).all() and (curves.spread[53:] < -0.9).all()


def test_a_sound_that_ends_early_closes_the_mouth() -> None:
    curves = mouth_curves(tone(300, 1), RATE, 50)
    assert (curves.opening[:25] > 0.95).all()
    assert not curves.opening[25:].any() and not curves.spread[28:].any()


def test_spread_tells_the_balance_of_two_tones_and_not_their_loudness() -> None:
    """Amplitudes 1 at 400 Hz and 0.1 at 3000 Hz: -20 dB; the law gives tanh((-20 + 12) / 12) = -0.5828."""
    sound = tone(400, 2) + 0.1 * tone(3000, 2)
    np.testing.assert_allclose(mouth_spread(sound, RATE, 50)[3:47], -0.5828, atol=2e-3)
    np.testing.assert_allclose(mouth_spread(0.01 * sound, RATE, 50), mouth_spread(sound, RATE, 50), atol=1e-3)


@pytest.mark.parametrize("law", [mouth_opening, mouth_spread])
def test_laws_move_with_the_sound(law) -> None:
    sound = np.pad(babble(1, 60), (RATE, RATE))
    moved = np.roll(sound, 5 * RATE // FPS)
    frames = len(sound) * FPS // RATE
    np.testing.assert_allclose(law(moved, RATE, frames)[5:], law(sound, RATE, frames)[:-5], atol=1e-9)


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_laws_are_the_same_at_every_sample_rate(rate: int) -> None:
    def sound(at: int) -> np.ndarray:
        times = np.arange(2 * at) / at
        return (np.clip(np.sin(9 * times), 0.02, None) * (np.sin(2000 * times) + 0.2 * np.sin(20_000 * times))
                ).astype(np.float32)

    for law in (mouth_opening, mouth_spread):
        np.testing.assert_allclose(law(sound(rate), rate, 50), law(sound(RATE), RATE, 50), atol=0.01)


def test_a_seed_gives_the_same_clip_and_another_seed_another() -> None:
    mouth = mouth_curves(babble(2, 8), RATE, 8)
    first, again, other = (render_clip(draw_scene(seed), [mouth], size=64, frames=8) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.pictures, again.pictures)
    assert (first.pictures != other.pictures).mean() > 0.5
    assert first.pictures.shape == (8, 64, 64, 3) and first.pictures.dtype == np.uint8


def test_captions_tell_what_is_seen() -> None:
    scenes = [draw_scene(seed) for seed in range(200)]
    assert all(CAPTION.fullmatch(scene.caption) for scene in scenes)
    assert {scene.background for scene in scenes} == set(KINDS)
    for scene in scenes:
        face = scene.faces[0]
        assert ("glasses" in scene.caption) == face.has_glasses and ("hat" in scene.caption) == (face.hat is not None)
        assert face == draw_face(scene.seed) and face.style in scene.caption and scene.background in scene.caption
    assert len({scene.caption for scene in scenes}) > 190


def test_two_heads_stand_side_by_side_with_words_and_a_face_each() -> None:
    scene = draw_scene(3, heads=2)
    left, right = scene.faces
    assert left == draw_face(3) != right
    assert scene.caption.startswith(f"Two talking heads: {left.words} on the left, {right.words} on the right, ")
    rendered = render_clip(scene, [still(4), still(4)], size=64, frames=4)
    assert rendered.pictures.shape == (4, 64, 128, 3)
    assert (rendered.boxes[:, 0, 2] <= 64).all() and (rendered.boxes[:, 1, 0] >= 64).all()
    with pytest.raises(ValueError, match="3 heads; a scene has 1 or 2"):
        draw_scene(3, heads=3)


def test_only_the_mouths_box_changes_with_the_mouth() -> None:
    for seed in range(20, 26):
        scene = draw_scene(seed)
        shut = render_clip(scene, [still(6)], size=128, frames=6)
        full = render_clip(scene, [MouthCurves(np.ones(6), np.resize([1.0, -1.0], 6))], size=128, frames=6)
        np.testing.assert_array_equal(shut.boxes, full.boxes)
        changed = (shut.pictures != full.pictures).any(-1)
        for picture, (x0, y0, x1, y1) in zip(changed, full.boxes[:, 0], strict=True):
            assert 0 <= x0 < x1 <= 128 and 0 <= y0 < y1 <= 128
            inside = picture[y0:y1, x0:x1].mean()
            assert inside > 0.3
            picture[y0:y1, x0:x1] = False
            assert not picture.any()


def test_curves_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mouths of \[5\] values for 1 heads and 6 frames"):
        render_clip(draw_scene(0), [still(5)], size=64, frames=6)


def test_speakers_take_turns_with_some_overlap() -> None:
    rng = np.random.default_rng(0)
    sounds = [tone(200, 10), tone(300, 10)]
    left, right = (mouth_opening(sound, RATE, 250) for sound in take_turns(rng, sounds, RATE))
    assert ((left > 0.1) | (right > 0.1)).all()
    both = ((left > 0.5) & (right > 0.5)).mean()
    assert 0.03 < both < 0.4
    assert 0.25 < (left > 0.5).mean() < 0.75


def test_pieces_begin_anywhere() -> None:
    rng = np.random.default_rng(0)
    utterance = np.concatenate([np.zeros(100, np.float32), np.linspace(0.1, 0.5, 2 * RATE, dtype=np.float32)])
    firsts = {round(float(random_piece(rng, [utterance], RATE, RATE)[0]), 3) for _ in range(20)}
    assert len(firsts) > 10
    assert random_piece(rng, [utterance], 10 * RATE, RATE).shape == (10 * RATE,)


def test_a_bank_holds_pictures_captions_openings_and_boxes(tmp_path: Path) -> None:
    parts = [babble(seed, 60) for seed in range(3)]
    samples = np.concatenate([(part * 32767).astype(np.int16) for part in parts])
    np.savez(tmp_path / "speech.npz", samples=samples, ends=np.cumsum([len(part) for part in parts]))
    for heads in (1, 2):
        bank = make_bank(tmp_path / "speech.npz", clips=3, frames=33, size=64, heads=heads)
        assert bank.pictures.shape == (3, 33, 64, 64 * heads, 3) and bank.pictures.dtype == np.uint8
        assert bank.openings.shape == (3, 33, heads) and 0 <= bank.openings.min() < bank.openings.max() <= 1
        assert bank.boxes.shape == (3, 33, heads, 4) and bank.boxes.dtype == np.uint16
        assert bank.captions == [draw_scene(FIRST_SEED + i, heads).caption for i in range(3)]
    again = make_bank(tmp_path / "speech.npz", clips=3, frames=33, size=64, heads=2)
    np.testing.assert_array_equal(again.pictures, bank.pictures)
    other = make_bank(tmp_path / "speech.npz", clips=3, frames=33, size=64, heads=2, seed=1)
    assert set(other.captions).isdisjoint(bank.captions)


def test_clips_are_written_with_their_sounds_and_captions(tmp_path: Path) -> None:
    sounds = [0.4 * babble(seed, 20) for seed in (1, 2)]
    write_clip(tmp_path / "two", 5, sounds, size=64, frames=20)
    assert {path.name for path in tmp_path.iterdir()} == {"two.left.wav", "two.mp4", "two.right.wav", "two.txt"}
    assert (tmp_path / "two.txt").read_text() == draw_scene(5, 2).caption + "\n"
    assert read_frames(tmp_path / "two.mp4", fps=FPS).shape == (20, 64, 128, 3)
    assert probe_video(tmp_path / "two.mp4").fps == 25
    left, right = (read_sound(tmp_path / f"two.{side}.wav").mono_16k for side in ("left", "right"))
    np.testing.assert_allclose(left, sounds[0], atol=1e-4)
    together = read_sound(tmp_path / "two.mp4").mono_16k
    assert correlation_at(left + right, together, 0) > 0.9  # AAC loses some of the hiss
    write_clip(tmp_path / "one", 5, sounds[:1], size=64, frames=20)
    assert {path.name for path in tmp_path.glob("one*")} == {"one.mp4", "one.txt"}


def test_sentences_come_in_many_languages_and_the_unseen_share_none() -> None:
    assert len(WORDS) >= 8 and len(VOICES) >= 8
    assert not set(WORDS) & set(UNSEEN_WORDS) and not set(VOICES) & set(UNSEEN_VOICES)
    rng = np.random.default_rng(0)
    drawn = [random_sentence(rng) for _ in range(60)]
    assert {language for language, _ in drawn} == set(WORDS)
    for language, text in drawn:
        words = text.rstrip(".").replace(",", "").split()
        assert 5 <= len(words) <= 12 and set(words) <= set(WORDS[language].split())
    assert random_sentence(rng, (3, 3), "sv")[0] == "sv"


def test_without_espeak_ng_one_message_says_what_to_do(tmp_path: Path, root: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="espeak-ng is not on the PATH.*apt install espeak-ng"):
        speak("en-us", "f1", "hello")
    done = subprocess.run([sys.executable, str(root / "tools" / "talking_heads.py"), str(tmp_path / "out")],
                          capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: espeak-ng is not on the PATH")
    assert not (tmp_path / "out").exists()


def test_flags_that_make_no_clip_are_told_together(tmp_path: Path, root: Path) -> None:
    done = subprocess.run([sys.executable, str(root / "tools" / "talking_heads.py"), str(tmp_path / "out"),
                           "--size", "100", "--frames", "0"], capture_output=True, text=True)
    assert done.returncode == 1 and "2 problems" in done.stderr
    assert "--size 100" in done.stderr and "--frames 0" in done.stderr
