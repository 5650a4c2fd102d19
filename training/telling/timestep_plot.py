"""How often each noise level is drawn: the law (`--show_timesteps`), and beside it what a run really drew."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxtyping import Float
import torch
from torch import Tensor

from training.loss import loss_weight
from training.timesteps import LatentSize, TimestepSettings, sigmas

BINS = 20
DRAWS = 20_000


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from common.plots import save_figure

    shares, weights = histogram(settings, size, bins=50)
    middle = [20 * i + 10 for i in range(50)]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.bar(middle, shares.tolist(), width=18, label="share of the draws")
    axes.set(xlabel="time (0 clean, 1000 pure noise)", ylabel="share of the draws",
             title=f"{settings.timestep_sampling} at {size[1] * 8}x{size[0] * 8}")
    other = axes.twinx()
    other.plot(middle, weights.tolist(), color="tab:red", label="loss weight")
    other.set(ylabel="loss weight", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, path, dpi=120)


def expected_shares(settings: TimestepSettings, sizes: Mapping[LatentSize, float], bins: int) -> list[float]:
    """Share of the draws in equal bins of the noise level, for samples of `sizes` (latent size → how often)."""
    total = sum(sizes.values())
    shares = sum((count / total * histogram(settings, size, bins)[0].double() for size, count in sizes.items()),
                 torch.zeros(bins, dtype=torch.float64))
    return [float(share) for share in shares]


def draw_drawn(counts: Sequence[int], losses: Sequence[float | None], expected: Sequence[float], path: Path, *,
               title: str) -> None:
    """PNG with the share of a run's samples in each bin, the law, and the mean training loss there."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from common.plots import save_figure

    bins, total = len(counts), sum(counts)
    width = 1000 / bins
    middle = [width * (number + 0.5) for number in range(bins)]
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.bar(middle, [count / total for count in counts], width=0.9 * width, label=f"drawn ({total} samples)")
    axes.stairs(expected, [width * number for number in range(bins + 1)], color="black", linewidth=1,
                label="law of the settings")
    axes.set(xlabel="time (0 clean, 1000 pure noise)", ylabel="share of the samples", title=title, xlim=(0, 1000))
    other = axes.twinx()
    other.plot(middle, [float("nan") if loss is None else loss for loss in losses], color="tab:red", marker=".",
               linewidth=0.8, label="mean training loss")
    other.set(ylabel="mean training loss", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3)
    save_figure(figure, path, dpi=120)
