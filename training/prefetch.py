"""Batches read ahead by threads, in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Plan = TypeVar("Plan")
Loaded = TypeVar("Loaded")


def prefetched(plans: Iterable[Plan], load: Callable[[Plan], Loaded], *, workers: int, ahead: int = 2
               ) -> Iterator[Loaded]:
    """`load(plan)` of each plan, in order, up to `workers` at a time and `ahead` finished ones waiting.

    Threads suffice: reading a cache is file access, which runs beside the training step. `workers` 0 loads in the
    caller's thread. An error of `load` is raised where its batch would have come.
    """
    if workers == 0:
        yield from map(load, plans)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="batch") as pool:
        waiting: deque[Future[Loaded]] = deque()
        try:
            for plan in plans:
                waiting.append(pool.submit(load, plan))
                if len(waiting) > workers + ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
