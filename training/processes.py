"""The processes of a launch: what they tell each other, where they wait, and why one went."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
import re
from typing import Any

import torch
import torch.distributed as dist

from common.errors import UserError

if dist.is_available():  # some builds have no such package
    import torch.distributed.nn  # before there is a group: the defaults of its functions would keep it beyond its end


@dataclass(frozen=True)
class Processes:
    """This process's place among those of the launch, and the device it computes on."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, in rank order (any picklable object)."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with exchanging():
            dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` gives on the first process, on all of them; its UserError or OSError is raised on all of them."""
        value: Any = None
        error: UserError | OSError | None = None
        if self.is_main:
            try:
                value = make()
            except (UserError, OSError) as found:
                error = found
        value, error = self.gather((value, error))[0]
        if error is not None:
            raise error
        return value

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            with exchanging():
                dist.barrier()


class MeetingPoint:
    """Where processes wait for each other as long as it takes.

    A collective gives up after minutes (`--ddp_timeout`); where one process has hours of work of its own, such as a
    long preview, the others wait here first. Make it on every process at the same time.
    """

    def __init__(self, processes: Processes) -> None:
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if processes.count > 1 else None

    def wait(self) -> None:
        """Wait until every process is here."""
        if self._group is not None:
            with exchanging():
                dist.barrier(group=self._group)


_PATIENCE = timedelta(days=30)


class LostProcess(UserError):
    """Another process of the launch has ended, or does not come; what it told of it is the text."""


@contextmanager
def exchanging() -> Iterator[None]:
    """Around what processes do together. Where another one is gone, LostProcess tells why it went (`tell_others`)."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        # Without the place in gloo's source, and its jokes.
        what = re.sub(r"^\[[^]]*\] ", "", str(error).splitlines()[0]).split(". ")[0]
        raise LostProcess(_told_by_others() or (
            f"another process of the launch is gone, or does not come, and has not told why ({what}). Look at what it "
            "printed, and whether the system killed it for want of memory.")) from error


def tell_others(error: BaseException) -> None:
    """Leave word of what ends this process alone, for the others who will miss it; before it leaves them."""
    if isinstance(error, LostProcess):
        return
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    with suppress(RuntimeError, ValueError):  # the store is with a process that may be gone, or was never there
        dist.distributed_c10d._get_default_store().set(_word_of(dist.get_rank()), text)


def _told_by_others() -> str:
    with suppress(RuntimeError, ValueError):
        store = dist.distributed_c10d._get_default_store()
        words = [(rank, _word_of(rank)) for rank in range(dist.get_world_size())]
        return "; ".join(f"process {rank}: {store.get(word).decode()}" for rank, word in words if store.check([word]))
    return ""


def _word_of(rank: int) -> str:
    return f"omnituner/why/{rank}"
