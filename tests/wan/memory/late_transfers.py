"""Transfers between CPU and CPU that behave as badly as streams may."""

from dataclasses import dataclass

import torch
from torch import Tensor

from wan.memory.transfers import PlainTransfers


@dataclass(eq=False)
class _Copy:
    target: Tensor
    source: Tensor
    is_done: bool = False


class LateTransfers(PlainTransfers):
    """A target is garbage (NaN in every float format) from the moment that a copy is asked for until it is waited for.

    `PlainTransfers` is the other extreme: a target is overwritten as soon as a copy is asked for.
    """

    def __init__(self) -> None:
        self.copied = 0
        self.pending: list[_Copy] = []
        """Copies that nothing has waited for yet."""

    def copy(self, target: Tensor, source: Tensor, after: None) -> _Copy:  # type: ignore[override]
        for one in [*self.pending]:  # copies keep their order: what is read or overwritten now has been written
            if one.target.data_ptr() in (source.data_ptr(), target.data_ptr()):
                self.wait(one)
        target.fill_(0xFF)
        self.copied += target.numel()
        self.pending.append(_Copy(target, source))
        return self.pending[-1]

    def wait(self, moment: _Copy | None) -> None:  # type: ignore[override]
        if moment is not None and not moment.is_done:
            with torch.no_grad():
                moment.target.copy_(moment.source)
            moment.is_done = True
            self.pending.remove(moment)
