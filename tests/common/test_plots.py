"""Drawing into files: nothing of a figure stays, and what a run holds is not looked through."""

import gc
from pathlib import Path
from typing import Any
import weakref

import pytest

from common.plots import draw


@pytest.fixture(autouse=True)
def nothing_set_aside(set_aside: None) -> None:
    """As in a run."""
    gc.unfreeze()


class Ring:
    """Refers to itself, as what a run holds may."""

    def __init__(self) -> None:
        self.self = self


def test_a_figure_is_gone_when_it_is_written_and_nothing_older_was_looked_at(tmp_path: Path) -> None:
    figures: list[weakref.ref[Any]] = []

    def paint(figure: Any) -> None:
        figure.add_subplot().plot([1, 2, 3])
        figures.append(weakref.ref(figure))
    gc.collect()
    gc.disable()
    try:
        older = weakref.ref(Ring())
        draw(paint, tmp_path / "a.png", size=(2, 1), dpi=50)
        assert figures[0]() is None and older() is not None and gc.get_freeze_count() == 0
        gc.collect()
        assert older() is None
    finally:
        gc.enable()
    assert (tmp_path / "a.png").stat().st_size > 300


def test_a_drawing_that_fails_writes_nothing_and_leaves_the_collector_as_it_was(tmp_path: Path) -> None:
    def paint(figure: Any) -> None:
        raise ValueError("no numbers")
    with pytest.raises(ValueError, match="no numbers"):
        draw(paint, tmp_path / "a.png", size=(2, 1), dpi=50)
    assert not list(tmp_path.iterdir()) and gc.get_freeze_count() == 0
