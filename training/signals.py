"""Ctrl-C and SIGTERM as wishes: noted at once, obeyed where nothing is lost."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

ASKS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; `number` is the signal. A script ends on it with exit code 128 + number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopWish:
    """Whether this process was asked to stop, and when it may do so at once.

    The first signal is noted, and raises `Interrupted` only inside `interruptible`. Another one raises wherever it
    comes, for those who cannot wait; not where it comes within `ECHO_S` of the first: a Ctrl-C reaches the processes of
    a launch from the terminal and again from the launcher.
    """

    ECHO_S = 2.0

    def __init__(self) -> None:
        self.number: int | None = None
        self.is_urgent = False
        """Whether a second signal broke something off, wherever it was."""
        self._noted_at = 0.0
        self._is_interruptible = False

    def __bool__(self) -> bool:
        return self.number is not None

    def obey(self) -> None:
        """Raise `Interrupted` where a stop was asked for."""
        if self.number is not None:
            raise Interrupted(self.number)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """A stretch that a signal ends at once, and that is not begun where one has come already."""
        self.obey()
        self._is_interruptible = True
        try:
            yield
        finally:
            self._is_interruptible = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Listen to the signals inside; nothing outside a process's main thread, which alone can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in ASKS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> Any:
        if self.number is not None:
            if time.monotonic() - self._noted_at > self.ECHO_S:
                self.is_urgent = True
                raise Interrupted(number)
            return
        self.number, self._noted_at = number, time.monotonic()
        if self._is_interruptible:
            raise Interrupted(number)
        if os.environ.get("RANK", "0") == "0":
            # A handler may run in the middle of a log line: the plainest way to speak is the safest.
            os.write(sys.stderr.fileno() if hasattr(sys.stderr, "fileno") else 2,
                     f"\n{signal.Signals(number).name}: the step is finished, then the state is saved. Once more stops "
                     "at once, and the last saved state is what remains.\n".encode())
