"""How often each noise level is drawn, as text or as a picture (`--show_timesteps`)."""

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

    from common.atomic import atomic_path

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
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
