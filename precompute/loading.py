"""Decodes the media of clips ahead of the encoders: in this process, or in workers that keep the clips' order.

A worker gets small picklable requests and sends arrays back, which land in (pinned) buffers of this process. Workers
are started by spawning, so that they know nothing of CUDA; they end with this process, however it ends.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
import multiprocessing
from multiprocessing.connection import Connection
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from common.errors import MediaError, UserError
from common.media.decode import use_threads
from common.media.item import Media

if TYPE_CHECKING:
    from dataset.items import Item
    from dataset.spans import Span

AHEAD = 2
"""Clips beyond one for each worker that may be ready before they are encoded."""
PIECE_BYTES = 8 << 20
"""Arrays travel in pieces of this size."""
MAX_WORKERS = 16
"""More decode faster than any one GPU encodes."""


@dataclass(frozen=True)
class ClipRequest:
    """What is to be read of one clip."""

    item: "Item"
    span: "Span | None"
    needs: frozenset[str]


Loaded = Media | Exception
"""A clip's media, or why it cannot be read."""
Reader = Callable[[Any], Loaded]
"""What reads a request; picklable, and never raises."""


class Loader(Protocol):
    """Reads clips in order."""

    def load(self, requests: Sequence[ClipRequest]) -> Iterator[Loaded]:
        """The media of each request, in order; an error of one clip stands in its place."""
        ...


def read(request: ClipRequest) -> Loaded:
    """Read one clip here."""
    from dataset.media import load_media

    try:
        return load_media(request.item, request.span, request.needs)
    except Exception as error:  # noqa: BLE001 - decoders raise anything at a damaged file, and it costs only this clip
        return error


def usual_workers(device: str, processes: int = 1) -> int:
    """Workers where none are asked for: this process's share of the cores but one; none where the CPU encodes."""
    if not device.startswith("cuda"):
        return 0
    return max(0, min(MAX_WORKERS, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                                    else os.cpu_count() or 1) // processes - 1))


@contextmanager
def open_loader(workers: int, *, pinned: bool = False) -> Iterator[Loader]:
    """A loader with that many worker processes (0: none), which are gone when the block is left.

    With `pinned` arrays from workers lie in memory that a GPU reads by itself.
    """
    if workers == 0:
        yield PlainLoader()
        return
    loader = WorkerLoader(workers, pinned=pinned)
    try:
        yield loader
    finally:
        loader.close()


class PlainLoader:
    """Reads each clip when it is asked for, in this process."""

    def load(self, requests: Sequence[ClipRequest]) -> Iterator[Loaded]:
        """As `Loader` says."""
        for request in requests:
            yield read(request)


class WorkerLoader:
    """Reads clips in worker processes; a thread for each hands it clips and takes in what it sends."""

    def __init__(self, workers: int, *, pinned: bool = False, reader: Reader = read) -> None:
        self._pinned, self._reader = pinned, reader
        self._state = threading.Condition()
        self._requests: Sequence[ClipRequest] = ()
        self._next, self._taken, self._is_closed = 0, 0, False
        self._ready: dict[int, Loaded] = {}
        self.processes: list[Any] = []
        """All that were started, also those that ended."""
        self._workers = workers
        self._threads = [threading.Thread(target=self._attend, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def load(self, requests: Sequence[ClipRequest]) -> Iterator[Loaded]:
        """As `Loader` says. One reading at a time."""
        with self._state:
            self._requests, self._next, self._taken = requests, 0, 0
            self._state.notify_all()
        for index in range(len(requests)):
            with self._state:
                while index not in self._ready:
                    self._state.wait()
                loaded = self._ready.pop(index)
                self._taken = index + 1
                self._state.notify_all()
            yield loaded

    def close(self) -> None:
        """End all workers, also those at work."""
        with self._state:
            self._is_closed = True
            self._state.notify_all()
            processes = list(self.processes)
        for process in processes:
            process.terminate()
        for thread in self._threads:
            thread.join()
        for process in processes:
            process.join()

    def _claim(self) -> int | None:
        """The next clip to read, waiting until there is room for it; None at the end."""
        with self._state:
            while not self._is_closed and (self._next >= len(self._requests)
                                           or self._next >= self._taken + self._workers + AHEAD):
                self._state.wait()
            if self._is_closed:
                return None
            self._next += 1
            return self._next - 1

    def _attend(self) -> None:
        """One worker's life as seen from here; where it dies, the clip is told and another takes its place."""
        worker: tuple[Connection, Any] | None = None
        while (index := self._claim()) is not None:
            worker = worker or self._start()
            if worker is None:
                break
            pipe, process = worker
            request = self._requests[index]
            loaded: Loaded
            try:
                pipe.send(request)
                loaded = receive(pipe, self._pinned)
            except (EOFError, OSError):
                process.join(1)
                loaded = MediaError(f"{request.item.where}: the process that read it ended (exit code "
                                    f"{process.exitcode}), most often for lack of memory. Use fewer --num_workers.")
                pipe.close()
                worker = None
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits for the clip must be told
                loaded = error
            with self._state:
                self._ready[index] = loaded
                self._state.notify_all()
        if worker is not None:
            worker[0].close()

    def _start(self) -> tuple[Connection, Any] | None:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there, self._reader), daemon=True)
        with self._state:
            if self._is_closed:
                return None
            process.start()
            self.processes.append(process)
        there.close()
        return here, process


def serve(pipe: Connection, reader: Reader) -> None:
    """A worker's life: read what is asked for until the asker is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer; it ends its workers
    use_threads(1)
    import cv2

    cv2.setNumThreads(1)
    while True:
        try:
            request = pipe.recv()
            send(pipe, reader(request))
        except (EOFError, OSError):
            return


def send(pipe: Connection, loaded: Loaded) -> None:
    """Send a clip: first what it is, then its arrays piece by piece."""
    if isinstance(loaded, Exception):
        pipe.send((_portable(loaded), []))
        return
    arrays: list[np.ndarray] = []
    pipe.send((_without_arrays(loaded, arrays), [(array.shape, array.dtype.str) for array in arrays]))
    for array in arrays:
        data = _bytes_of(np.ascontiguousarray(array))
        for start in range(0, len(data), PIECE_BYTES):
            pipe.send_bytes(data[start:start + PIECE_BYTES])


def receive(pipe: Connection, pinned: bool = False) -> Loaded:
    """What `send` sent; with `pinned` the arrays lie in memory that a GPU reads by itself."""
    what, forms = pipe.recv()
    if isinstance(what, Exception):
        return what
    arrays = []
    for shape, dtype in forms:
        array = _empty(shape, np.dtype(dtype), pinned)
        data = _bytes_of(array)
        start = 0
        while start < len(data):
            start += pipe.recv_bytes_into(data[start:start + PIECE_BYTES])
        arrays.append(array)
    return _with_arrays(what, arrays)


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


@dataclass(frozen=True)
class _Array:
    """Stands for an array of a `Media` that travels by itself."""

    index: int


def _without_arrays(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return _Array(len(arrays) - 1)
    return _changed(value, lambda one: _without_arrays(one, arrays))


def _with_arrays(value: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(value, _Array):
        return arrays[value.index]
    return _changed(value, lambda one: _with_arrays(one, arrays))


def _changed(value: Any, change: Any) -> Any:
    """`value` with `change` made to what a `Media` may hold arrays in: itself, mappings, tuples."""
    if isinstance(value, Media):
        return replace(value, **{name: change(one) for name, one in vars(value).items()})
    if isinstance(value, Mapping):
        return {name: change(one) for name, one in value.items()}
    if isinstance(value, tuple):
        return tuple(change(one) for one in value)
    return value


def _empty(shape: Collection[int], dtype: np.dtype, pinned: bool) -> np.ndarray:
    if not pinned:
        return np.empty(tuple(shape), dtype)
    import torch

    size = int(np.prod(tuple(shape))) * dtype.itemsize
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(tuple(shape))


def _portable(error: Exception) -> Exception:
    """The error itself where it is ours or Python's, which survive the journey; else one of ours that says the same."""
    if type(error).__module__ in ("builtins", "common.errors"):
        return error
    return UserError(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
