"""The table of step caches measures what it says."""

import numpy as np
import pytest

from tools.step_cache_quality import Made, main, psnr, row


def made(level, seconds, runs, sync=None):
    return Made(np.full((1, 2, 2, 3), level, np.uint8), seconds, runs, sync)


def test_decibels_are_those_of_the_definition():
    black, grey = (np.full((1, 2, 2, 3), level, np.uint8) for level in (0, 51))
    assert psnr(black, grey) == pytest.approx(20 * np.log10(255 / 51)) and psnr(grey, grey) == float("inf")


def test_a_row_is_the_mean_over_seeds():
    line = row("x", [made(51, 1.0, 30, 0.5), made(51, 3.0, 10, 0.7)], [made(0, 2.0, 40), made(0, 4.0, 40)])
    assert line == "| x | 50 % | 0.62 | 14.0 (14.0) | 0.600 |"


def test_the_table_of_tiny_weights(tiny_weights, tmp_path, capsys):
    flags = ["--dit", str(tiny_weights / "wan2.1_t2v_tiny.safetensors"), "--vae", str(tiny_weights / "Wan2.1_VAE.pth"),
             "--t5", str(tiny_weights / "models_t5_umt5-xxl-enc-bf16.pth"), "--prompt", "a fox", "--video_size", "32",
             "32", "--video_length", "5", "--guidance_scale", "1"]
    main(["--kinds", "magcache", "first_block", "--thresholds", "9", "--seeds", "1", "--steps", "8", "--out",
          str(tmp_path / "t.md"), "--", *flags])
    lines = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    names = [line.split(" | ")[0] for line in lines]
    assert names[2:] == ["| none, 8 steps", "| fewer steps: 6", "| fewer steps: 4", "| magcache 9", "| first_block 9"]
    saved = [line.split(" | ")[1] for line in lines[2:]]
    # magcache: steps 2 and 3, 5 and 6 of 8 (two together; the first two are retained); first block: 6 steps · 3 of 4
    assert saved == ["0 %", "25 %", "50 %", "50 %", "56 %"]
    assert "inf" in lines[2] and "inf" not in lines[5]
