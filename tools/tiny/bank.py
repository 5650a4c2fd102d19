"""Rendered clips for training the small set, kept in memory: pictures, captions, mouth openings."""

from dataclasses import dataclass
from multiprocessing import get_context
import os
from pathlib import Path

import numpy as np

from tools.talking_heads import FPS, draw_face, mouth_opening, render_clip
from tools.tiny.speech import RATE_HZ

FIRST_SEED = 10_000
"""Faces of the training clips; the demo's and the tests' faces have lower seeds, so that no training sees them."""


@dataclass(frozen=True)
class Bank:
    """`pictures` ``[clips N size size 3]`` uint8, one caption a clip, `openings` ``[clips N]``."""

    pictures: np.ndarray
    captions: list[str]
    openings: np.ndarray


def load_speech(path: Path) -> list[np.ndarray]:
    """Utterances of `tools.tiny.speech` as float32."""
    with np.load(path) as file:
        return [part.astype(np.float32) / 32768 for part in np.split(file["samples"], file["ends"][:-1])]


def _render(job: tuple[int, np.ndarray, int]) -> tuple[np.ndarray, str]:
    import cv2

    cv2.setNumThreads(1)
    seed, opening, size = job
    face = draw_face(seed)
    return render_clip(face, opening, size, seed), f"A talking head: {face.words}."


def make_bank(speech: Path, *, clips: int, frames: int, size: int, seed: int = 0) -> Bank:
    """Render `clips` clips of `frames` frames on all cores; each has a face of its own and a piece of an utterance."""
    utterances = load_speech(speech)
    rng = np.random.default_rng([seed, 5])
    curves = [mouth_opening(u, RATE_HZ, int(len(u) / RATE_HZ * FPS)) for u in utterances]
    openings = np.zeros((clips, frames))
    for row in openings:
        curve = curves[rng.integers(len(curves))]
        start = int(rng.integers(0, max(1, len(curve) - frames + 1)))
        part = curve[start:start + frames]
        row[:len(part)] = part
    jobs = [(FIRST_SEED + seed * 100_000 + i, openings[i], size) for i in range(clips)]
    with get_context("fork").Pool(os.cpu_count()) as pool:
        results = pool.map(_render, jobs, chunksize=4)
    return Bank(np.stack([pictures for pictures, _ in results]), [caption for _, caption in results], openings)
