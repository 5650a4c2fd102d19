"""The picture of a sync measurement: mouth and sound over time, correlation over lag."""

import os

from jaxtyping import Float
import numpy as np

from evaluation.sync import SyncResult, correlation_at


def plot_sync(path: str | os.PathLike[str], opening: Float[np.ndarray, " N"], envelope: Float[np.ndarray, " N"],
              result: SyncResult, *, max_lag: int = 12, title: str = "") -> None:
    """Write a PNG (or what the suffix of `path` says): both curves frame by frame, and r at every lag."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from common.atomic import atomic_path

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    curves, lags = figure.subplots(1, 2, width_ratios=(3, 1))
    curves.plot(envelope, color="tab:gray", label="speech envelope")
    curves.set(xlabel="frame", ylabel="speech envelope", ylim=(-0.05, 1.05), title=f"{title}  {result}".strip())
    mouth = curves.twinx()
    mouth.plot(opening, color="tab:red", label="mouth opening")
    mouth.set(ylabel="mouth opening (height / width)")
    figure.legend(loc="outside lower center", ncols=2)
    steps = range(-max_lag, max_lag + 1)
    values = [correlation_at(opening, envelope, lag) for lag in steps]
    lags.plot(steps, [np.nan if value is None else value for value in values], marker=".")
    lags.axvline(0, color="tab:gray", linewidth=0.8)
    lags.set(xlabel="lag (frames; + sound late)", ylabel="correlation r", ylim=(-1.05, 1.05))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
