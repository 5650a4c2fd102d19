"""Plots and strips."""

from pathlib import Path
import subprocess
import sys

import numpy as np
import pytest

from common.media.image import read_image
from evaluation.plot import plot_panels, plot_sync, plot_tables
from evaluation.strip import write_strip


def test_a_sync_plot_is_written_with_and_without_numbers(tmp_path: Path) -> None:
    envelope = np.random.default_rng(0).uniform(0, 1, 50)
    opening = 0.5 * envelope
    opening[3] = np.nan
    plot_sync(tmp_path / "sync.png", {"before": opening[::-1], "after": opening}, envelope, title="clip.mp4")
    plot_sync(tmp_path / "none.png", {"mouth": np.full(50, np.nan)}, envelope)
    assert read_image(tmp_path / "sync.png")[0].shape[1] == 1100
    assert (tmp_path / "none.png").is_file()


def test_many_clips_are_drawn_as_panels_and_their_correlations_as_tables(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    panels = [(f"clip {k}", {"after": rng.uniform(0, 1, 50)}, rng.uniform(0, 1, 50)) for k in range(3)]
    plot_panels(tmp_path / "panels.png", panels, columns=2)
    assert read_image(tmp_path / "panels.png")[0].shape[1] == 704
    plot_tables(tmp_path / "tables.png", {"mouths": np.array([[1, 0.2], [np.nan, -1]])}, ["a", "b"],
                axes_labels=("sound", "compared with"))
    picture, _ = read_image(tmp_path / "tables.png")
    red, blue = (103, 0, 31), (5, 48, 97)  # the ends of matplotlib's map RdBu_r, far more than the scale beside has
    assert all((abs(picture.astype(int) - colour).sum(-1) < 10).sum() > 3000 for colour in (red, blue))


def test_a_strip_has_a_labelled_row_for_each_clip(tmp_path: Path) -> None:
    red = np.full((20, 64, 64, 3), (200, 0, 0), np.uint8)
    blue = np.full((33, 128, 128, 3), (0, 0, 200), np.uint8)
    write_strip(tmp_path / "strip.png", [("before", red), ("after", blue)], columns=5, height=96)
    picture, _ = read_image(tmp_path / "strip.png")
    assert picture.shape == (2 * (96 + 20 + 2), 5 * 98, 3)
    assert tuple(picture[60, 40]) == (200, 0, 0) and tuple(picture[118 + 60, 40]) == (0, 0, 200)
    assert (picture[:20] < 128).any()


def test_levels_stand_above_the_columns_as_bars(tmp_path: Path) -> None:
    white = np.full((3, 64, 64, 3), 255, np.uint8)
    write_strip(tmp_path / "strip.png", [("clip", white)], levels=np.array([0.0, 0.5, 1.0]), columns=3, height=64)
    picture, _ = read_image(tmp_path / "strip.png")
    bars = [(picture[20:56, 66 * k:66 * k + 64] < 200).any((1, 2)).sum() for k in range(3)]
    assert bars[0] <= 1 and abs(bars[1] - 18) <= 1 and abs(bars[2] - 36) <= 1


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
