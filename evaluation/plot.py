"""Pictures of sync measurements: mouths and sound over time, correlation over lag, sounds against sounds."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from jaxtyping import Float
import numpy as np

from common.plots import draw
from evaluation.sync import correlation_at

Curves = Mapping[str, Float[np.ndarray, " N"]]
"""Label → mouth opening of each frame, NaN where it is not seen."""
COLOURS = ("tab:orange", "tab:blue", "tab:red", "tab:green")
SOUND_COLOUR = "0.82"
DPI = 110


def plot_sync(path: str | os.PathLike[str], openings: Curves, envelope: Float[np.ndarray, " N"], *, max_lag: int = 12,
              title: str = "") -> None:
    """Write a PNG (or what the suffix of `path` says): mouths over the speech envelope, and r at every lag."""

    def paint(figure: Any) -> None:
        curves, lags = figure.subplots(1, 2, width_ratios=(3, 1))
        mouth = _draw_curves(curves, openings, envelope)
        curves.set(xlabel="frame", ylabel="speech envelope", title=title)
        mouth.set_ylabel("mouth opening (height / width)")
        figure.legend(loc="outside lower center", ncols=1 + len(openings))
        steps = range(-max_lag, max_lag + 1)
        for colour, opening in zip(COLOURS, openings.values(), strict=False):
            values = [correlation_at(opening, envelope, step) for step in steps]
            lags.plot(steps, [np.nan if value is None else value for value in values], marker=".", color=colour)
        lags.axvline(0, color="tab:gray", linewidth=0.8)
        lags.set(xlabel="lag (frames; + sound late)", ylabel="correlation r", ylim=(-1.05, 1.05))
    draw(paint, path, size=(10, 3.6), dpi=DPI, layout="constrained")


def plot_panels(path: str | os.PathLike[str], panels: Sequence[tuple[str, Curves, Float[np.ndarray, " N"]]], *,
                columns: int) -> None:
    """Write a grid of small pictures, each (title, mouths, speech envelope), row by row."""
    rows = -(-len(panels) // columns)

    def paint(figure: Any) -> None:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels):]:
            axes.remove()
        for axes, (title, openings, envelope) in zip(grid, panels, strict=False):
            mouth = _draw_curves(axes, openings, envelope)
            axes.set_title(title, fontsize="small")
            for one in (axes, mouth):
                one.tick_params(labelsize="x-small")
        handles = [one for axes in figure.axes[:1] + figure.axes[-1:] for one in axes.get_legend_handles_labels()[0]]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    draw(paint, path, size=(3.2 * columns, 1.9 * rows + 0.4), dpi=DPI, layout="constrained")


def plot_tables(path: str | os.PathLike[str], tables: Mapping[str, Float[np.ndarray, "S S"]], names: Sequence[str], *,
                axes_labels: tuple[str, str]) -> None:
    """Write square tables of correlations (-1…1, NaN: unknown) side by side; `names` are their rows and columns."""
    side = 0.62 * len(names) + 1.6

    def paint(figure: Any) -> None:
        grid = figure.subplots(1, len(tables), squeeze=False).ravel()
        for axes, (title, table) in zip(grid, tables.items(), strict=True):
            image = axes.imshow(table, vmin=-1, vmax=1, cmap="RdBu_r")
            for (i, j), value in np.ndenumerate(table):
                axes.text(j, i, "–" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize="small",
                          color="white" if abs(value) > 0.7 else "black")
            axes.set_title(title, fontsize="medium")
            axes.set(ylabel=axes_labels[0], xlabel=axes_labels[1])
            axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize="small")
            axes.set_yticks(range(len(names)), names, fontsize="small")
        figure.colorbar(image, ax=grid, label="correlation r", shrink=0.8)
    draw(paint, path, size=(side * len(tables) + 0.8, side), dpi=DPI, layout="constrained")


def _draw_curves(axes: Any, openings: Curves, envelope: np.ndarray) -> Any:
    """The envelope as an area, the mouths as lines on an axis of their own, which is returned."""
    axes.fill_between(range(len(envelope)), envelope, color=SOUND_COLOUR, label="speech envelope")
    axes.set_ylim(0, 1.05)
    mouth = axes.twinx()
    for colour, (label, opening) in zip(COLOURS, openings.items(), strict=False):
        mouth.plot(opening, color=colour, label=label)
    return mouth
