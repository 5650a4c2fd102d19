"""What the demos draw from: faces and utterances that no training saw, and stretches of speech of any file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
import numpy as np

from common.errors import MediaError
from tools.proof.recipe import FPS, FRAMES

VOICED = 0.2
"""Envelope above which a frame counts as speech (the loudest tenth of the frames has 1)."""
VOICED_SHARE = 0.6
"""Share of such frames that makes a stretch speech."""


@dataclass(frozen=True)
class Item:
    """One clip to generate: a face that says a sound."""

    face: str
    sound: str
    caption: str
    picture: Path
    audio: Path
    seed: int
    """Seed of the generation's noise; the same before and after training."""

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.face}-{self.sound}"


def unseen_faces(folder: Path) -> list[tuple[str, str, Path]]:
    """(name, caption, picture) of the faces in `folder`, by name. MediaError when there is none."""
    pictures = sorted(folder.glob("face_*.png"))
    if not pictures:
        raise MediaError(f"{folder}: holds no face_*.png. Get the repository's examples/demo/unseen back, or make it "
                         "with tools/talking_heads.py.")
    return [(path.stem, path.with_suffix(".txt").read_text(encoding="utf-8").strip(), path) for path in pictures]


def unseen_sounds(folder: Path) -> list[Path]:
    """The utterances in `folder`, by name. MediaError when there is none."""
    sounds = sorted(folder.glob("speech_*.flac"))
    if not sounds:
        raise MediaError(f"{folder}: holds no speech_*.flac. Get the repository's examples/demo/unseen back, or make "
                         "it with tools/talking_heads.py.")
    return sounds


def make_items(faces: Sequence[tuple[str, str, Path]], sounds: Sequence[Path], seed: int) -> list[Item]:
    """Every face with every sound; each item has a seed of its own, counted up from `seed`."""
    pairs = [(face, sound) for face in faces for sound in sounds]
    return [Item(name, sound.stem, caption, picture, sound, seed + i)
            for i, ((name, caption, picture), sound) in enumerate(pairs)]


def first_speech(samples: Float[np.ndarray, " T"], sample_rate: int) -> int | None:
    """First sample of the first stretch of 81 frames that is speech, by its envelope; None when there is none.

    It begins with a frame of speech, and at least 60 % of its frames are speech.
    """
    from evaluation.sync import speech_envelope

    frames = int(len(samples) * FPS / sample_rate)
    if frames < FRAMES:
        return None
    voiced = speech_envelope(samples, sample_rate, frames, FPS) > VOICED
    count = np.concatenate(([0], np.cumsum(voiced)))
    share = (count[FRAMES:] - count[:-FRAMES]) / FRAMES
    starts = np.flatnonzero(voiced[:len(share)] & (share >= VOICED_SHARE))
    return int(starts[0]) * sample_rate // FPS if len(starts) else None


def cut_speech(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write the first 3.24 s of speech of each file as 16 kHz mono WAV into `folder`; files without are told and left.

    MediaError when a file cannot be read, two have one name, or none holds enough speech.
    """
    import soundfile

    from common.media.sound import mono16k, read_sound
    from common.timebase import AUDIO_SAMPLE_RATE_HZ

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for path in paths:
        samples = mono16k(read_sound(path))
        start = first_speech(samples, AUDIO_SAMPLE_RATE_HZ)
        target = folder / f"{path.stem}.wav"
        if start is None:
            print(f"{path.name}: {len(samples) / AUDIO_SAMPLE_RATE_HZ:.2f} s, without {FRAMES / FPS:.2f} s of speech "
                  "in one piece; left out", flush=True)
            continue
        if target in written:
            raise MediaError(f"{path}: --audio names two files called {path.stem}. Rename one.")
        soundfile.write(target, samples[start:start + FRAMES * AUDIO_SAMPLE_RATE_HZ // FPS], AUDIO_SAMPLE_RATE_HZ)
        print(f"{path.name}: speech from {start / AUDIO_SAMPLE_RATE_HZ:.2f} s on", flush=True)
        written.append(target)
    if not written:
        raise MediaError(f"--audio: none of {len(paths)} files holds {FRAMES / FPS:.2f} s of speech in one piece. Give "
                         "longer recordings of one voice.")
    return written
