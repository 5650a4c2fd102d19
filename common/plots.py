"""Saving matplotlib's figures."""

import gc
import os
from typing import Any

from common.atomic import atomic_path


def save_figure(figure: Any, path: str | os.PathLike[str], *, dpi: int) -> None:
    """Write a `matplotlib.figure.Figure` as a picture, atomically, and take it apart.

    A figure refers to itself in many places, so that its memory (some MB each) would come back only when Python looks
    for such things by itself: in a run that draws for days that is tens of MB later.
    """
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=dpi)
    figure.clear()
    gc.collect()
