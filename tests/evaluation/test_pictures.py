"""Plots and strips."""

from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from common.media.image import read_image
from evaluation.plot import plot_sync
from evaluation.strip import write_strip
from evaluation.sync import sync_of, unavailable


def test_a_sync_plot_is_written_with_and_without_numbers(tmp_path: Path) -> None:
    envelope = np.random.default_rng(0).uniform(0, 1, 50)
    opening = 0.5 * envelope
    opening[3] = np.nan
    plot_sync(tmp_path / "sync.png", opening, envelope, sync_of(opening, envelope), title="clip.mp4")
    plot_sync(tmp_path / "none.png", np.full(50, np.nan), envelope, unavailable("no mouth found"))
    assert read_image(tmp_path / "sync.png")[0].shape[1] == 1200
    assert (tmp_path / "none.png").is_file()


def test_a_strip_has_a_labelled_row_for_each_clip(tmp_path: Path) -> None:
    red = np.full((20, 64, 64, 3), (200, 0, 0), np.uint8)
    blue = np.full((33, 128, 128, 3), (0, 0, 200), np.uint8)
    write_strip(tmp_path / "strip.png", [("before", red), ("after", blue)], columns=5, height=96)
    picture, _ = read_image(tmp_path / "strip.png")
    assert picture.shape == (2 * (96 + 20 + 2), 5 * 98, 3)
    assert tuple(picture[60, 40]) == (200, 0, 0) and tuple(picture[118 + 60, 40]) == (0, 0, 200)
    assert (picture[:20] < 128).any()


def test_an_empty_strip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        write_strip(tmp_path / "strip.png", [])


@pytest.mark.slow
def test_the_command_prints_one_line_and_plots(root: Path, tmp_path: Path) -> None:
    clips = root / "examples" / "demo" / "clips"
    own = subprocess.run([sys.executable, str(root / "tools" / "sync_meter.py"), str(clips / "head_001.mp4"),
                          "--plot", str(tmp_path / "sync.png")], capture_output=True, text=True, check=True)
    assert own.stdout.startswith("head_001.mp4: r +0.9") and own.stdout.count("\n") == 1
    assert "best lag +0 frames" in own.stdout
    assert (tmp_path / "sync.png").is_file()
    other = subprocess.run([sys.executable, str(root / "tools" / "sync_meter.py"), str(clips / "head_001.mp4"),
                            "--audio", str(clips / "head_004.mp4")], capture_output=True, text=True, check=True)
    assert "r +0.9" not in other.stdout
