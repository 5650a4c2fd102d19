"""Datasets of some of the demo's clips, as the tests of caches and of training use them."""

from collections.abc import Iterable
from pathlib import Path
import shutil

TOML = """
[general]
resolution = [{size}, {size}]
caption_extension = ".txt"
batch_size = {batch}
[[datasets]]
video_directory = "{folder}/clips"
cache_directory = "{folder}/cache"
audio = "clip"
target_fps = {fps}
target_frames = [{frames}]
"""


def copy_clips(root: Path, folder: Path, numbers: Iterable[int]) -> None:
    """The clips of these numbers with their captions, in `folder`, which is made."""
    folder.mkdir(exist_ok=True)
    for number in numbers:
        for suffix in (".mp4", ".txt"):
            shutil.copy(root / "examples" / "demo" / "clips" / f"head_{number:03d}{suffix}", folder)


def toml_text(folder: Path, *, size: int = 32, batch: int = 1, fps: int = 25, frames: int = 9) -> str:
    """A dataset of the clips in ``folder/clips``, cached in ``folder/cache``; an entry may go on behind it."""
    return TOML.format(folder=folder.as_posix(), size=size, batch=batch, fps=fps, frames=frames)


def write_toml(folder: Path, name: str = "data.toml", **sizes: int) -> Path:
    """`toml_text` as a file in `folder`."""
    path = folder / name
    path.write_text(toml_text(folder, **sizes), encoding="utf-8")
    return path
