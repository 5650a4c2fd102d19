"""The picture of the noise levels."""

from pathlib import Path

import pytest

from training.telling.timestep_plot import as_text, histogram, save_image
from training.timesteps import TimestepSettings


def test_shares_follow_the_rule() -> None:
    shares, weights = histogram(TimestepSettings(timestep_sampling="uniform"), (60, 104))
    assert shares.tolist() == pytest.approx([0.05] * 20, abs=1e-3)
    assert weights.tolist() == pytest.approx([1.0] * 20)
    shifted, _ = histogram(TimestepSettings(timestep_sampling="shift", discrete_flow_shift=5.0), (60, 104))
    assert shifted[10:].sum() > 0.85


def test_text_and_image_are_made(tmp_path: Path) -> None:
    settings = TimestepSettings(timestep_sampling="shift", discrete_flow_shift=3.0, weighting_scheme="sigma_sqrt")
    text = as_text(settings, (60, 104))
    assert "832x480" in text and len(text.splitlines()) == 22
    save_image(settings, (60, 104), tmp_path / "timesteps.png")
    assert (tmp_path / "timesteps.png").stat().st_size > 5000
