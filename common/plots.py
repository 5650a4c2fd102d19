"""Drawing with matplotlib into files."""

from collections.abc import Callable
import gc
import os
from typing import Any, Literal

from common.atomic import atomic_path


def draw(paint: Callable[[Any], None], path: str | os.PathLike[str], *, size: tuple[float, float], dpi: int,
         layout: Literal["constrained"] | None = None) -> None:
    """Have `paint` draw on a matplotlib Figure of `size` inches, write it as a picture, atomically, and drop it.

    A figure refers to itself in many places, so that its memory (some MB each) would come back only when Python looks
    for such things by itself: in a run that draws for days that is tens of MB later. It is looked for here, among what
    came while it was drawn alone: to look through all that a run holds takes a third of a second.
    """
    is_ours = not gc.get_freeze_count()
    if is_ours:
        gc.freeze()
    try:
        _write(paint, path, size, dpi, layout)
        gc.collect()
    finally:
        if is_ours:
            gc.unfreeze()


def _write(paint: Callable[[Any], None], path: str | os.PathLike[str], size: tuple[float, float], dpi: int,
           layout: Literal["constrained"] | None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout=layout)
    FigureCanvasAgg(figure)
    paint(figure)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
