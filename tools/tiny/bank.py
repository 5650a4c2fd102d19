"""Rendered clips for training the small set, kept in memory: pictures, captions, mouth openings, mouths' places."""

from dataclasses import dataclass
from multiprocessing import get_context
import os
from pathlib import Path

from jaxtyping import Float, UInt8, UInt16
import numpy as np

from tools.heads.clip import Rendered, render_clip
from tools.heads.laws import FPS, MouthCurves, mouth_curves
from tools.heads.scene import draw_scene
from tools.heads.turns import random_piece, take_turns
from tools.tiny.speech import RATE_HZ

FIRST_SEED = 10_000
"""Scenes of the training clips; those of the demo and the tests have lower seeds, so that no training sees them."""
SEEDS_APART = 100_000
"""Distance of the first scenes of two banks."""


@dataclass(frozen=True)
class Bank:
    """Clips with a caption each; `openings` in 0…1, `boxes` x0 y0 x1 y1 in pixels as of `tools.heads.clip.Rendered`."""

    pictures: UInt8[np.ndarray, "clips N H W 3"]
    captions: list[str]
    openings: Float[np.ndarray, "clips N heads"]
    boxes: UInt16[np.ndarray, "clips N heads 4"]


def load_speech(path: Path) -> list[np.ndarray]:
    """Utterances of `tools.tiny.speech` as float32."""
    with np.load(path) as file:
        return [part.astype(np.float32) / 32768 for part in np.split(file["samples"], file["ends"][:-1])]


def _render(job: tuple[int, list[MouthCurves], int]) -> Rendered:
    seed, mouths, size = job
    return render_clip(draw_scene(seed, len(mouths)), mouths, size=size, frames=len(mouths[0].opening))


def make_bank(speech: Path, *, clips: int, frames: int, size: int, seed: int = 0, heads: int = 1) -> Bank:
    """Render `clips` clips of `frames` frames on all cores; each has a scene of its own and speech from anywhere.

    Two heads take turns, each with its own speech. The laws are those of the cut sound, as in the demo's clips.
    """
    import cv2

    utterances = load_speech(speech)
    rng = np.random.default_rng([seed, 5])
    length = round(frames / FPS * RATE_HZ)
    jobs = []
    for i in range(clips):
        sounds = [random_piece(rng, utterances, length, RATE_HZ) for _ in range(heads)]
        if heads == 2:
            sounds = take_turns(rng, sounds, RATE_HZ)
        jobs.append((FIRST_SEED + seed * SEEDS_APART + i, [mouth_curves(s, RATE_HZ, frames) for s in sounds], size))
    pictures = np.empty((clips, frames, size, size * heads, 3), np.uint8)
    boxes = np.empty((clips, frames, heads, 4), np.uint16)
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # ends OpenCV's own threads: a forked process would wait for them forever
    with get_context("fork").Pool(os.cpu_count()) as pool:
        for i, rendered in enumerate(pool.imap(_render, jobs, chunksize=2)):
            pictures[i], boxes[i] = rendered.pictures, rendered.boxes
    cv2.setNumThreads(threads)
    openings = np.array([[mouth.opening for mouth in mouths] for _, mouths, _ in jobs]).swapaxes(1, 2)
    return Bank(pictures, [draw_scene(job[0], heads).caption for job in jobs], openings, boxes)
