"""Batches that are fetched before their turn."""

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ahead(Generic[Item]):
    """Items of an iterator, of which the next one may be fetched while the last one is still worked on."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = iter(items)
        self._waiting: list[Item] = []
        self._is_over = False
        self._error: Exception | None = None

    def look_ahead(self) -> None:
        """Fetch the next item, where it is not there yet. An error is kept for whoever asks for the item."""
        if self._waiting or self._is_over or self._error is not None:
            return
        try:
            self._waiting.append(next(self._items))
        except StopIteration:
            self._is_over = True
        except Exception as error:  # noqa: BLE001 - raised where the item would have come
            self._error = error

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
