"""Writes entries of the cache in a thread, while the next ones are encoded."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
import errno
import os
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor

from common.errors import ConfigError, UserError, WeightsError

if TYPE_CHECKING:
    from dataset.store import CacheStore
    from dataset.work import WorkEntry

FATAL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNWRITTEN = 8
"""Entries that may wait for the disk before encoding waits for it too."""

Made = dict[str, Tensor] | Exception
"""The tensors of an entry, or why there are none."""


class EntryWriter:
    """Writes entries in a thread of its own, in order; who leaves the block early leaves no half entry."""

    def __init__(self, store: "CacheStore") -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, "cache-writer")
        self._results: deque[tuple[WorkEntry, Future[object]]] = deque()

    def __enter__(self) -> "EntryWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
                 ) -> None:
        self._thread.shutdown(cancel_futures=True)

    def put(self, entry: "WorkEntry", made: Made) -> None:
        """Have an entry written, or its failure told in its turn."""
        future: Future[object]
        if isinstance(made, Exception):
            future = Future()
            future.set_exception(made)
        else:
            future = self._thread.submit(self._store.write, entry.item, entry.span, entry.job, made)
        self._results.append((entry, future))

    def done(self, *, wait: bool = False) -> Iterator[tuple["WorkEntry", str]]:
        """Entries that are finished since the last call, each with its failure or an empty text.

        Waits until no more than `UNWRITTEN` are open, with `wait` for all.
        """
        while self._results and (wait or len(self._results) > UNWRITTEN or self._results[0][1].done()):
            entry, future = self._results.popleft()
            error = future.exception()
            if error is None:
                yield entry, ""
            elif isinstance(error, Exception):
                raise_if_fatal(error)
                yield entry, reason(error)
            else:
                raise error


def raise_if_fatal(error: Exception) -> None:
    """A full disk and wrong weights stop the run: the next clip would meet the same."""
    if isinstance(error, ConfigError | WeightsError) or getattr(error, "errno", None) in FATAL_ERRNOS:
        raise error
    # safetensors wraps the system's error in one of its own.
    if any(f"os error {number}" in str(error) for number in FATAL_ERRNOS):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def reason(error: Exception) -> str:
    """An error as it stands in the summary."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
