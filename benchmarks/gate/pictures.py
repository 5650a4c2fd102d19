"""The gate's two pictures: losses with the same seed, and gradient errors by block."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gate.variants import REFERENCE, VARIANTS
from benchmarks.gate.verdict import Runs
from common.plots import draw

COLOURS = dict(zip(VARIANTS, ("0.6", "black", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple",
                              "tab:brown", "tab:pink"), strict=False))
WINDOW = 25
"""Steps of the moving average that is drawn."""
DPI = 110
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def draw_losses(runs: Runs, path: Path) -> None:
    """A column a seed: training loss (moving average), held-out loss, and how far each is from the reference's."""
    size = (4.2 * len(runs[REFERENCE]) + 1.5, 7.5)
    draw(lambda figure: _paint_losses(figure, runs), path, size=size, dpi=DPI, layout="constrained")


def _paint_losses(figure: Any, runs: Runs) -> None:
    seeds = [*runs[REFERENCE]]
    grid = figure.subplots(3, len(seeds), squeeze=False, sharex=True, sharey="row")
    for column, seed in enumerate(seeds):
        reference = _smooth(runs[REFERENCE][seed]["losses"])
        for name, by_seed in runs.items():
            if seed not in by_seed:
                continue
            one, style = by_seed[seed], {"color": COLOURS[name], "linewidth": 1.0}
            smooth = _smooth(one["losses"])
            steps = np.arange(len(smooth)) + len(one["losses"]) - len(smooth) + 1
            grid[0, column].plot(steps, smooth, label=name, **style)
            grid[1, column].plot(*zip(*[entry[:2] for entry in one["held_out"]], strict=True), marker=".", **style)
            if name != REFERENCE and len(smooth) == len(reference):
                grid[2, column].plot(steps, 100 * (smooth / reference - 1), **style)
        grid[0, column].set_title(f"seed {seed}")
        grid[2, column].axhline(0, color=COLOURS[REFERENCE], linewidth=0.8)
        grid[2, column].set_xlabel("step")
    for row, label in enumerate((f"training loss ({WINDOW} steps)", "held-out loss", f"% from {REFERENCE}")):
        grid[row, 0].set_ylabel(label)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(runs))


def _smooth(losses: Sequence[float]) -> np.ndarray:
    width = min(WINDOW, len(losses))
    return np.convolve(losses, np.full(width, 1 / width), mode="valid")


def draw_gradients(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A panel for each model and moment: relative error of the LoRA gradient of each block, one line a variant."""
    whole = [line for line in lines if "error" not in line]
    panels = list(dict.fromkeys((line["model"], line["when"]) for line in whole))
    if not panels:
        return
    draw(lambda figure: _paint_gradients(figure, panels, whole), path, size=(4.6 * len(panels) + 0.5, 4.2), dpi=DPI,
         layout="constrained")


def _paint_gradients(figure: Any, panels: Sequence[tuple[str, str]], whole: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, MaxNLocator, NullLocator

    grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    grid[0].set(ylabel="error of the LoRA gradient (%)", yscale="log")
    grid[0].yaxis.set_major_locator(FixedLocator(TICKS))
    grid[0].yaxis.set_major_formatter(FormatStrFormatter("%g"))
    grid[0].yaxis.set_minor_locator(NullLocator())
    for axes, (model, when) in zip(grid, panels, strict=True):
        for line in whole:
            if (line["model"], line["when"]) != (model, when):
                continue
            blocks = [name for name in line["by_block"] if name != "condition"]
            axes.plot([int(name) for name in blocks], [100 * line["by_block"][name] for name in blocks], marker=".",
                      color=COLOURS[line["variant"]], label=f"{line['variant']} against {line['against']}")
        axes.set(title=f"{model}, {when}", xlabel="block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(axis="y", linewidth=0.3)
        axes.legend(fontsize="x-small")
