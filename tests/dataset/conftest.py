"""Fixtures of the dataset's tests: tiny videos, and a file that stands for an encoder's weights."""

from pathlib import Path
import shutil

import numpy as np
import pytest

from common import fingerprint
from common.media.sound import Sound
from common.media.video import write_video
from tests.dataset.toys import MakeVideo


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fingerprint.CACHE_FOLDER_VARIABLE, str(tmp_path / "user-cache"))


@pytest.fixture(scope="session")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> MakeVideo:
    """``make_video(path, frames=21, fps=25, size=(48, 32), sound_s=None, seed=0)`` writes an MP4 and its caption."""
    store = tmp_path_factory.mktemp("videos")

    def make(path: Path, frames: int = 21, *, fps: int = 25, size: tuple[int, int] = (48, 32),
             sound_s: float | None = None, seed: int = 0, caption: str | None = "a clip") -> Path:
        kept = store / f"{frames}-{fps}-{size[0]}x{size[1]}-{sound_s}-{seed}.mp4"
        if not kept.exists():
            draws = np.random.default_rng(seed)
            base = draws.integers(0, 200, (size[1], size[0], 3), dtype=np.uint8)
            pictures = (base + np.uint8(2 * index % 256) for index in range(frames))
            sound = None
            if sound_s is not None:
                samples = draws.uniform(-0.2, 0.2, (1, round(16000 * sound_s))).astype(np.float32)
                sound = Sound(samples, 16000)
            write_video(kept, pictures, fps=fps, sound=sound)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kept, path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return make


@pytest.fixture()
def weights(tmp_path: Path) -> Path:
    """A file that stands for an encoder's weights."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"weights of the first kind")
    return path
