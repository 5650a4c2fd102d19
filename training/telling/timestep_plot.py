"""How often each noise level is drawn: the law (`--show_timesteps`), and beside it what a run really drew."""

from collections.abc import Mapping, Sequence
import math
from pathlib import Path
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor

from common.plots import draw
from training.loss import loss_weight
from training.timesteps import LatentSize, TimestepSettings, sigmas

BINS = 20
DRAWS = 20_000
SIZE = (9.0, 4.5)
"""Inches."""


def histogram(settings: TimestepSettings, size: LatentSize, bins: int = BINS
              ) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """(share of the draws, mean loss weight there) in equal bins of the model's time 0…1000."""
    sigma = sigmas((torch.arange(DRAWS) + 0.5) / DRAWS, settings, size)
    place = (sigma * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(place, minlength=bins).float()
    weight = loss_weight(settings.weighting_scheme, sigma, shift=settings.discrete_flow_shift)
    weights = torch.bincount(place, weights=weight, minlength=bins).float() / counts.clamp(min=1)
    return counts / DRAWS, weights


def as_text(settings: TimestepSettings, size: LatentSize) -> str:
    """A line for each bin: range, share, bar, loss weight."""
    shares, weights = histogram(settings, size)
    step = 1000 // len(shares)
    lines = [f"noise levels of '{settings.timestep_sampling}' at {size[1] * 8}x{size[0] * 8} "
             "(0 clean, 1000 pure noise)", "      time   share  loss weight"]
    for i, (share, weight) in enumerate(zip(shares.tolist(), weights.tolist(), strict=True)):
        bar = "#" * round(share / max(shares.max().item(), 1e-9) * 50)
        lines.append(f"{i * step:4d}…{(i + 1) * step:<5d} {share:6.1%}  {weight:11.4g}  {bar}")
    return "\n".join(lines)


def save_image(settings: TimestepSettings, size: LatentSize, path: Path) -> None:
    """PNG with the share of the draws and the loss weight over time."""
    shares, weights = histogram(settings, size, bins=50)

    def paint(figure: Any) -> None:
        axes = _bars(figure, shares.tolist(), "share of the draws")
        axes.set(ylabel="share of the draws", title=f"{settings.timestep_sampling} at {size[1] * 8}x{size[0] * 8}")
        _line(figure, axes, weights.tolist(), "loss weight")
    draw(paint, path, size=SIZE, dpi=120)


def expected_shares(settings: TimestepSettings, sizes: Mapping[LatentSize, float], bins: int) -> list[float]:
    """Share of the draws in equal bins of the noise level, for samples of `sizes` (latent size → how often)."""
    total = sum(sizes.values())
    shares = sum((count / total * histogram(settings, size, bins)[0].double() for size, count in sizes.items()),
                 torch.zeros(bins, dtype=torch.float64))
    return [float(share) for share in shares]


def draw_drawn(counts: Sequence[int], losses: Sequence[float | None], expected: Sequence[float], path: Path, *,
               title: str) -> None:
    """PNG with the share of a run's samples in each bin, the law, and the mean training loss there."""
    bins, total = len(counts), sum(counts)

    def paint(figure: Any) -> None:
        axes = _bars(figure, [count / total for count in counts], f"drawn ({total} samples)")
        axes.stairs(expected, [1000 / bins * number for number in range(bins + 1)], color="black", linewidth=1,
                    label="law of the settings")
        axes.set(ylabel="share of the samples", title=title)
        _line(figure, axes, [math.nan if loss is None else loss for loss in losses], "mean training loss", marker=".",
              linewidth=0.8)
    draw(paint, path, size=SIZE, dpi=120)


def _bars(figure: Any, shares: Sequence[float], label: str) -> Any:
    # Margins in inches: matplotlib's own layout engines draw everything once more to find them.
    width, height = SIZE
    figure.subplots_adjust(left=0.85 / width, right=1 - 0.75 / width, bottom=0.8 / height, top=1 - 0.35 / height)
    axes = figure.add_subplot()
    bar = 1000 / len(shares)
    axes.bar([bar * (number + 0.5) for number in range(len(shares))], shares, width=0.9 * bar, label=label)
    axes.set(xlabel="time (0 clean, 1000 pure noise)", xlim=(0, 1000))
    return axes


def _line(figure: Any, axes: Any, values: Sequence[float], label: str, **style: Any) -> None:
    """A curve over the bars, on an axis of its own, and the legend below both."""
    bar = 1000 / len(values)
    other = axes.twinx()
    other.plot([bar * (number + 0.5) for number in range(len(values))], values, color="tab:red", label=label, **style)
    other.set(ylabel=label, ylim=(0, None))
    figure.legend(loc="lower center", ncols=3)
