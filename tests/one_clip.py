"""One clip with a sound file of its own, for tests that show it to training and to generation."""

from pathlib import Path

import numpy as np
from PIL import Image
import soundfile

from common.media.video import read_frames, write_video

FPS = 25


def write_clip(folder: Path, *, frames: int, channels: int, seed: int, caption: str) -> None:
    """`clips/head.mp4` (no multiple of any bucket) with caption, `sounds/head.wav` of its length, and `first.png`."""
    for name in ("clips", "sounds"):
        (folder / name).mkdir()
    draws = np.random.default_rng(seed)
    start = draws.integers(0, 200, (70, 100, 3))
    pictures = np.stack([np.clip(start + 5 * k, 0, 255) for k in range(frames)]).astype(np.uint8)
    clip = folder / "clips" / "head.mp4"
    write_video(clip, pictures, fps=FPS, sound=None)
    clip.with_suffix(".txt").write_text(caption, encoding="utf-8")
    sound = 0.3 * draws.standard_normal((frames * 16_000 // FPS, channels))
    soundfile.write(folder / "sounds" / "head.wav", sound, 16_000, subtype="FLOAT")
    Image.fromarray(read_frames(clip, fps=FPS, count=1)[0]).save(folder / "first.png")
