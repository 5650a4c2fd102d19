"""Batches that are fetched before their turn, also over the end of an epoch."""

from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Items of a generator, of which the next one may be fetched while the last one is still worked on."""

    def __init__(self, items: Generator[Item, None, None]) -> None:
        self._items = items
        self._waiting: list[Item] = []
        self._is_over = False
        self._error: Exception | None = None

    def look_ahead(self) -> bool:
        """Fetch the next item, where it is not there yet; False where there is none.

        An error is kept for whoever asks for the item, and counts as one that is there.
        """
        if not (self._waiting or self._is_over or self._error is not None):
            try:
                self._waiting.append(next(self._items))
            except StopIteration:
                self._is_over = True
            except Exception as error:  # noqa: BLE001 - raised where the item would have come
                self._error = error
        return not self._is_over

    @property
    def waiting(self) -> Item | None:
        """The item that was fetched and not taken yet; None where there is none."""
        return self._waiting[0] if self._waiting else None

    def has_next(self) -> bool:
        """Whether there is another item; it is fetched for that. Raises what fetching it raised."""
        self.look_ahead()
        if self._error is not None:
            raise self._error
        return bool(self._waiting)

    def take(self, most: int) -> Iterator[Item]:
        """Up to `most` items; each is fetched when the one before has been worked on."""
        for _ in range(most):
            if not self.has_next():
                return
            yield self._waiting.pop()

    def close(self) -> None:
        """End the generator and let go of what was fetched; no further item comes."""
        self._is_over = True
        self._waiting.clear()
        self._items.close()


class EpochsAhead(Generic[Item]):
    """Epochs of items, one open at a time: the next one may be opened as soon as the last item of one is taken."""

    def __init__(self, batches: Callable[[int, int, int], Generator[Item, None, None]]) -> None:
        """`batches` gives an epoch's items (`training.passes.Job.batches`)."""
        self._batches = batches
        self._place: tuple[int, int, int] | None = None
        self._open: Ahead[Item] | None = None

    def epoch(self, number: int, step: int, start: int = 0) -> Ahead[Item]:
        """Items from number `start` on of epoch `number`, which begins after `step` steps; any other is closed.

        An epoch that was opened ahead of its turn is the one that is given when its turn comes.
        """
        place = (number, step, start)
        if self._open is None or place != self._place:
            self.close()
            self._place, self._open = place, Ahead(self._batches(*place))
        return self._open

    def close(self) -> None:
        """End the threads that read ahead."""
        if self._open is not None:
            self._open.close()
            self._open = None
