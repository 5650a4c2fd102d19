"""Which noise levels were drawn: counted as they were, beside the law of the settings."""

from pathlib import Path

import pytest
import torch

from tests.training.cached_clips import talking
from tests.training.line import DATA, Line, Saves, fit, go_on
from tests.training.test_validation import fit as fit_video
from tests.training.test_validation import real_job
from training.clips import EpochBatches
from training.parallel import GradientBucket
from training.passes import BatchLoss
from training.processes import Processes
from training.step import draw
from training.telling.noise_levels import BINS, PICTURE, NoiseLevels, bin_of
from training.telling.timestep_plot import expected_shares, histogram
from training.timesteps import TimestepSettings, sigmas

FLAT = [1 / BINS] * BINS


def levels(folder: Path, every: int = 100) -> NoiseLevels:
    return NoiseLevels(folder, lambda: FLAT, title="run", every=every)


class Exact(Line):
    """Tells for item n of the data the noise level (n + 0.5) / 10."""

    def __init__(self) -> None:
        super().__init__(DATA, 3)

    def loss(self, batch: list[torch.Tensor]) -> BatchLoss:
        result = super().loss(batch)
        numbers = [min(range(8), key=lambda n: abs(DATA[n] - float(item[0]))) for item in batch]
        return BatchLoss(result.total, result.per_sample, result.names, tuple((n + 0.5) / 10 for n in numbers))


def test_every_sample_is_counted_at_its_level_with_its_loss(tmp_path: Path) -> None:
    found = levels(tmp_path)
    job = Exact()
    fit(job, found, steps=6, accumulation=2, lr=0.0)
    expected = (torch.tensor([[value, 1.0] for value in DATA]) @ job.weight.detach()).pow(2).sum(1).tolist()
    rows = found.rows()
    assert [row.count for row in rows] == [3] * 8 + [0, 0]
    assert [row.loss for row in rows[:8]] == pytest.approx(expected, rel=1e-5) and rows[9].loss is None
    assert rows[0].share == pytest.approx(1 / 8) and rows[0].expected == pytest.approx(0.1)
    assert (tmp_path / PICTURE).stat().st_size > 5000


def test_the_levels_that_are_told_are_those_of_the_draws(tmp_path: Path) -> None:
    """Recomputed from seed, epoch and position, as the step draws them."""
    clips = [talking(tmp_path, name, frames=5) for name in "abc"]
    job, found = real_job(clips=clips), levels(tmp_path)
    fit_video(job, found, steps=3)
    settings = TimestepSettings(timestep_sampling="shift")
    counts = [0] * BINS
    for epoch in (1, 2):  # two batches a step: 2 + 1 clips, and again
        for batch in list(EpochBatches(clips, seed=1, processes=Processes())(epoch, 0))[:3 if epoch == 1 else 2]:
            assert batch is not None
            uniform = draw(batch.positions, batch.latents.shape[1:], seed=1, epoch=epoch).uniform
            for sigma in sigmas(uniform, settings, (4, 6)).tolist():
                counts[bin_of(sigma)] += 1
    assert found.counts == counts and sum(counts) == 5


def test_what_was_counted_goes_on_after_a_resume(tmp_path: Path) -> None:
    whole = levels(tmp_path)
    saves = Saves(whole)
    fit(Exact(), whole, saves, steps=5, lr=0.0)
    again = levels(tmp_path)
    state, memory = saves.at[2]
    go_on(Exact(), again, state=state, memory=memory, steps=5, lr=0.0)
    assert again.remembered() == whole.remembered() and sum(whole.counts) == 14


def test_a_level_on_an_edge_lies_where_the_law_counts_it() -> None:
    grid = torch.arange(1, 1001) / 1000
    places = (grid * BINS).long().clamp(max=BINS - 1)
    assert [bin_of(sigma) for sigma in grid.tolist()] == places.tolist()


def test_the_law_of_several_sizes_is_their_mixture() -> None:
    settings = TimestepSettings(timestep_sampling="flux_shift")
    small, large = (histogram(settings, size, BINS)[0].double() for size in ((32, 32), (128, 128)))
    mixed = expected_shares(settings, {(32, 32): 3, (128, 128): 1}, BINS)
    torch.testing.assert_close(torch.tensor(mixed, dtype=torch.float64), 0.75 * small + 0.25 * large)
    assert not torch.allclose(small, large) and sum(mixed) == pytest.approx(1)


def test_draws_follow_the_law_that_is_drawn_beside_them(tmp_path: Path) -> None:
    """Chi-square over 50 bins, 20,000 draws of a run; 99.9 % of such sums lie below 86 (49 degrees of freedom)."""
    settings = TimestepSettings(timestep_sampling="sigmoid")
    uniform = torch.stack([draw([at], (1,), seed=3, epoch=1).uniform[0] for at in range(20_000)])
    found = levels(tmp_path)
    for sigma in sigmas(uniform, settings, (60, 104)).tolist():
        found.counts[bin_of(sigma)] += 1
    law = expected_shares(settings, {(60, 104): 1.0}, BINS)
    chi = sum((count - 20_000 * share) ** 2 / (20_000 * share)
              for count, share in zip(found.counts, law, strict=True) if share)
    assert chi < 86


def test_a_job_that_tells_no_levels_leaves_no_picture(tmp_path: Path) -> None:
    found = levels(tmp_path, every=1)
    fit(Line(DATA), found, steps=2)
    assert found.rows() == [] and list(tmp_path.iterdir()) == []


def test_numbers_that_ride_along_come_back_in_one_reading() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    bucket = GradientBucket([weight], Processes())
    bucket.add_loss(torch.tensor(6.0), 2)
    totals = bucket.reduce(also=[torch.tensor([1.5, 2.5]), torch.tensor([3.5], dtype=torch.float64)])
    assert (totals.loss, totals.samples, totals.also) == (3.0, 2, (1.5, 2.5, 3.5))
