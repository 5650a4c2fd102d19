"""What one pass over one clip computes in its first step and needs in every step: text, picture, rotary table."""

from collections.abc import Callable
from typing import Any, TypeVar

Made = TypeVar("Made")


class Constants:
    """Remembers by name. One for each pass of each clip: it does not look at what a value was made from."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """The value of `name`, made by the first call."""
        if name not in self._made:
            self._made[name] = make()
        made: Made = self._made[name]
        return made
