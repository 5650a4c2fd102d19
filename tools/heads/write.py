"""Files of rendered clips, and the set of examples/demo."""

from pathlib import Path

from jaxtyping import Float32
import numpy as np

from common.atomic import atomic_path, write_text
from common.media.sound import Sound
from common.media.video import write_video
from tools.heads.clip import render_clip
from tools.heads.laws import FPS, MouthCurves, mouth_curves
from tools.heads.scene import draw_scene
from tools.heads.speech import UNSEEN_VOICES, UNSEEN_WORDS, VOICES, random_sentence, speak
from tools.heads.turns import PEAK, random_piece, take_turns

RATE_HZ = 16_000
MADE_BY = "Rendered by tools/talking_heads.py of OmniTuner; speech synthesised by espeak-ng."
"""Container tag of every clip."""
DEMO_CLIPS, DEMO_SIZE, DEMO_FRAMES = 48, 128, 81
UNSEEN_FACES = (1000, 1003)
MAX_CORRELATION = 0.15
"""Between the mouth openings of any two unseen utterances."""
MIN_DEVIATION = 0.2
"""Of an unseen utterance's mouth opening over its frames: even babble would prove little."""
TRIES = 12
"""Sentences tried for each unseen utterance, each cut at several places."""


def write_clip(stem: Path, seed: int, sounds: list[Float32[np.ndarray, " T"]], *, size: int, frames: int) -> None:
    """Write `stem`.mp4 and .txt of a scene's seed, a head for each of `sounds`; for two also .left.wav, .right.wav."""
    if len(sounds) == 2:
        for side, sound in zip(("left", "right"), sounds, strict=True):
            write_sound(stem.parent / f"{stem.name}.{side}.wav", sound)
    scene = draw_scene(seed, len(sounds))
    rendered = render_clip(scene, [mouth_curves(sound, RATE_HZ, frames) for sound in sounds], size=size, frames=frames)
    write_video(stem.parent / f"{stem.name}.mp4", rendered.pictures, fps=FPS,
                sound=Sound(np.stack(sounds).sum(0, keepdims=True), RATE_HZ),
                tags={"comment": MADE_BY, "description": MADE_BY})
    write_text(stem.parent / f"{stem.name}.txt", scene.caption + "\n")


def spoken_sounds(seed: int, heads: int, frames: int) -> list[Float32[np.ndarray, " T"]]:
    """Speech at 16 kHz for each head of a clip of `frames` frames, from anywhere in long sentences; two take turns."""
    rng = np.random.default_rng([seed, 41])
    length = round(frames / FPS * RATE_HZ)
    sounds = [random_piece(rng, [spoken(rng)], length, RATE_HZ) for _ in range(heads)]
    return sounds if heads == 1 else [sound / heads for sound in take_turns(rng, sounds, RATE_HZ)]


def spoken(rng: np.random.Generator, language: str | None = None, voice: str | None = None
           ) -> Float32[np.ndarray, " T"]:
    """A long random sentence at 16 kHz, longer than a clip of 81 frames."""
    import soxr

    language, text = random_sentence(rng, (16, 22), language)
    samples, rate = speak(language, voice or str(rng.choice(VOICES)), text, int(rng.integers(130, 180)))
    return soxr.resample(samples, rate, RATE_HZ)


def write_sound(path: Path, samples: Float32[np.ndarray, " T"]) -> None:
    """Write a 16-bit mono file at 16 kHz in the format of its suffix (.wav, .flac)."""
    import soundfile

    with atomic_path(path) as temporary:
        soundfile.write(temporary, samples, RATE_HZ, subtype="PCM_16", format=path.suffix[1:].upper())


def write_demo(out: Path) -> None:
    """The clips of examples/demo, and faces and utterances that they do not hold."""
    import cv2

    for i in range(DEMO_CLIPS):
        write_clip(out / "clips" / f"head_{i:03d}", i, spoken_sounds(i, 1, DEMO_FRAMES), size=DEMO_SIZE,
                   frames=DEMO_FRAMES)
    unseen = out / "unseen"
    for seed in UNSEEN_FACES:
        scene, shut = draw_scene(seed), MouthCurves(np.zeros(1), np.zeros(1))
        picture = render_clip(scene, [shut], size=DEMO_SIZE, frames=1).pictures[0]
        with atomic_path(unseen / f"face_{seed}.png") as temporary:
            temporary.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
        write_text(unseen / f"face_{seed}.txt", scene.caption + "\n")
    for i, samples in enumerate(unseen_speech()):
        write_sound(unseen / f"speech_{i}.flac", samples)


def unseen_speech() -> list[Float32[np.ndarray, " T"]]:
    """Utterances of `DEMO_FRAMES` frames from the middle of longer speech, one in each language of `UNSEEN_WORDS`.

    Mouth openings of any two correlate by less than `MAX_CORRELATION`, so that a mouth shows whose sound moved it.
    """
    rng = np.random.default_rng(43)
    choices = [_candidates(rng, language, voice)
               for language, voice in zip(UNSEEN_WORDS, UNSEEN_VOICES, strict=True)]
    curves = [[mouth_curves(samples, RATE_HZ, DEMO_FRAMES).opening for samples in row] for row in choices]
    chosen = _unlike(curves, [])
    if chosen is None:
        raise RuntimeError(f"no {len(choices)} utterances correlate by less than {MAX_CORRELATION}; raise TRIES")
    return [row[i] for row, i in zip(choices, chosen, strict=True)]


def _candidates(rng: np.random.Generator, language: str, voice: str) -> list[np.ndarray]:
    length = round(DEMO_FRAMES / FPS * RATE_HZ)
    found = []
    for _ in range(TRIES):
        speech = spoken(rng, language, voice)
        margin = round(0.5 * RATE_HZ)
        for start in range(margin, len(speech) - length - margin, round(0.4 * RATE_HZ)):
            piece = speech[start:start + length]
            if mouth_curves(piece, RATE_HZ, DEMO_FRAMES).opening.std() >= MIN_DEVIATION:
                found.append((PEAK * piece / np.abs(piece).max()).astype(np.float32))
    return found


def _unlike(curves: list[list[np.ndarray]], chosen: list[int]) -> list[int] | None:
    """One index a row such that no two chosen curves correlate; depth first."""
    row = len(chosen)
    if row == len(curves):
        return chosen
    for i, curve in enumerate(curves[row]):
        if all(abs(np.corrcoef(curve, curves[r][c])[0, 1]) < MAX_CORRELATION for r, c in enumerate(chosen)):
            found = _unlike(curves, [*chosen, i])
            if found is not None:
                return found
    return None
