"""What is fetched over the end of an epoch: when, in which order, and that whatever was opened is closed."""

from collections.abc import Generator
import signal
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.line import DATA, Line, Saves, fit, go_on, loop_of
from training.callbacks import Callback, Outcome, Run, StepReport
from training.passes import BatchLoss
from training.prefetch import prefetched
from training.signals import Interrupted


class Shuffled(Line):
    """Another order in each epoch, read by `workers` threads; `order` tells what happened, `opened` which epochs."""

    def __init__(self, count: int = 3, *, workers: int = 0, breaks: BaseException | None = None) -> None:
        """`breaks`: what reading the first batch of epoch 2 raises."""
        super().__init__(DATA[:count])
        self.workers, self.breaks = workers, breaks
        self.order: list[str] = []
        self.opened: list[tuple[int, int, int]] = []
        self.is_open = 0

    def batches(self, epoch: int, step: int, start: int) -> Generator[list[Tensor], None, None]:
        def load(number: int) -> list[Tensor]:
            if self.breaks and epoch == 2:
                raise self.breaks
            return self._batches[number]

        self.opened.append((epoch, step, start))
        self.is_open += 1
        try:
            for place, one in enumerate(prefetched(shuffled(len(self._batches), epoch)[start:], load,
                                                   workers=self.workers)):
                self.order.append(f"fetch {epoch}.{start + place}")
                yield one
        finally:
            self.is_open -= 1

    def loss(self, batch: list[Tensor]) -> BatchLoss:
        self.order.append("loss")
        return super().loss(batch)

    def after_step(self) -> None:
        self.order.append("step")


def shuffled(count: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=torch.Generator().manual_seed(epoch)).tolist()  # type: ignore[no-any-return]


class Watch(Callback):
    """Writes into the job's `order`, and notes what is open when the run ends."""

    def __init__(self, job: Shuffled) -> None:
        self.job = job
        self.outcome: Outcome | None = None

    def while_computing(self, run: Run) -> None:
        self.job.order.append("draw")

    def on_epoch(self, run: Run) -> None:
        self.job.order.append(f"epoch {run.state.epoch}")

    def on_end(self, run: Run, outcome: Outcome) -> None:
        self.outcome = outcome
        assert self.job.is_open == 0, "closed before the last files are written"
        assert not [one for one in threading.enumerate() if one.name.startswith("batch")]


def test_the_first_batch_of_an_epoch_is_fetched_while_the_last_step_of_the_one_before_is_computed() -> None:
    one = Shuffled(2)
    fit(one, Watch(one), steps=4)
    assert one.order == ["fetch 1.0", "loss", "fetch 1.1", "draw", "step", "loss", "fetch 2.0", "draw", "step",
                         "epoch 1", "loss", "fetch 2.1", "draw", "step", "loss", "draw", "step", "epoch 2"]
    assert one.opened == [(1, 0, 0), (2, 2, 0)], "none beyond the last"


def test_a_short_last_step_looks_into_the_next_epoch_too() -> None:
    one = Shuffled(3)
    fit(one, Watch(one), steps=3, accumulation=2)
    assert one.order == ["fetch 1.0", "loss", "fetch 1.1", "loss", "fetch 1.2", "draw", "step", "loss", "fetch 2.0",
                         "draw", "step", "epoch 1", "loss", "fetch 2.1", "loss", "draw", "step"]


def test_where_an_epoch_is_cut_the_next_one_is_opened_at_the_step_of_the_cut() -> None:
    one = Shuffled(3)
    fit(one, Watch(one), steps=6, cuts=(2, 5))
    assert one.order[:10] == ["fetch 1.0", "loss", "fetch 1.1", "draw", "step", "loss", "fetch 2.0", "draw", "step",
                              "epoch 1"]
    assert one.opened == [(1, 0, 0), (2, 2, 0), (3, 5, 0)], "the second cut falls on the end of an epoch"


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize(("settings", "lengths"), [
    ({}, [5, 4]), ({"accumulation": 2}, [5, 5, 5]), ({"accumulation": 3}, [5, 5, 5, 5, 3]),
    ({"cuts": (4, 6)}, [4, 2, 3]),
], ids=str)
def test_every_epoch_shows_its_batches_in_its_order(settings: dict[str, Any], lengths: list[int], workers: int) -> None:
    one = Shuffled(5, workers=workers)
    fit(one, Watch(one), steps=9, **settings)
    expected = [DATA[number] for epoch, length in enumerate(lengths, start=1) for number in shuffled(5, epoch)[:length]]
    assert one.seen == pytest.approx(expected)


@pytest.mark.parametrize("settings", [{}, {"accumulation": 2}, {"cuts": (4, 6)}], ids=str)
def test_a_run_goes_on_bit_for_bit_from_a_state_at_any_step_and_at_an_epochs_end(settings: dict[str, Any]) -> None:
    class Kept(Saves):
        def on_step(self, run: Run, report: StepReport) -> None:
            super().on_step(run, report)
            weights[report.step, "step"] = one.weight.detach().clone()
            states[report.step, "step"] = self.at[report.step][0]

        def on_epoch(self, run: Run) -> None:
            weights[run.state.step, "epoch"] = one.weight.detach().clone()
            states[run.state.step, "epoch"] = self.at[run.state.step][0]

    one, weights, states = Shuffled(3), {}, {}
    before = torch.get_rng_state()
    fit(one, Kept(), steps=9, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(states) > 9
    for place, state in states.items():
        rest = Shuffled(3)
        rest.weight.data.copy_(weights[place])
        go_on(rest, state=state, memory={}, steps=9, **settings)
        assert torch.equal(rest.weight, one.weight), place
        assert one.seen[len(one.seen) - len(rest.seen):] == rest.seen


@pytest.mark.parametrize("workers", [0, 2])
def test_what_breaks_an_epochs_first_batch_comes_after_the_files_of_the_epoch_before(workers: int) -> None:
    one = Shuffled(2, workers=workers, breaks=OSError("no disk"))
    watch = Watch(one)
    loop = loop_of(one, watch, steps=4)
    with pytest.raises(OSError, match="no disk"):
        loop.run()
    assert one.order[-3:] == ["draw", "step", "epoch 1"] and watch.outcome is Outcome.FAILED
    assert (loop.state.step, loop.state.epoch, loop.state.batches_in_epoch, loop.state.is_in_epoch) == (2, 2, 0, True)


def test_what_breaks_a_batch_that_no_step_asks_for_is_not_told() -> None:
    class Stops(Callback):
        def on_epoch(self, run: Run) -> None:
            run.stop("enough")

    one = Shuffled(2, breaks=OSError("no disk"))
    watch = Watch(one)
    fit(one, Stops(), watch, steps=4)
    assert one.opened[-1] == (2, 2, 0) and watch.outcome is Outcome.FINISHED


class Ends(Callback):
    """Does `what` to the run at its second step, which is the last of an epoch, or behind that epoch."""

    def __init__(self, what: str, where: str) -> None:
        self.what, self.where = what, where

    def on_step(self, run: Run, report: StepReport) -> None:
        if report.step == 2:
            self._end(run, "step")

    def while_computing(self, run: Run) -> None:
        if run.state.step == 1:
            self._end(run, "computing")

    def on_epoch(self, run: Run) -> None:
        self._end(run, "epoch")

    def _end(self, run: Any, where: str) -> None:
        if where != self.where:
            return
        if self.what == "stop":
            run.stop("enough")
        elif self.what == "signal":
            run.wish.number = signal.SIGTERM
        else:
            raise ValueError("broken")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["computing", "step", "epoch"])
@pytest.mark.parametrize("what", ["stop", "signal", "error"])
def test_an_epoch_that_was_opened_ahead_is_closed_wherever_the_run_ends(what: str, where: str, workers: int) -> None:
    one = Shuffled(2, workers=workers)
    watch = Watch(one)
    loop = loop_of(one, Ends(what, where), watch, steps=20)
    if what == "stop":
        loop.run()
    else:
        with pytest.raises(Interrupted if what == "signal" else ValueError):
            loop.run()
    assert one.opened == [(1, 0, 0), (2, 2, 0)] and one.order[-1] != "loss"
    assert watch.outcome is {"stop": Outcome.FINISHED, "signal": Outcome.INTERRUPTED, "error": Outcome.FAILED}[what]
    assert ("epoch 1" in one.order) == (what != "error")


def test_an_interrupt_while_the_next_epoch_is_read_leaves_the_step_out() -> None:
    one = Shuffled(2, breaks=KeyboardInterrupt())
    watch = Watch(one)
    loop = loop_of(one, watch, steps=4)
    with pytest.raises(KeyboardInterrupt):
        loop.run()
    assert loop.is_between_steps and loop.state.step == 1 and watch.outcome is Outcome.INTERRUPTED


def test_a_stop_that_was_asked_for_opens_nothing() -> None:
    class Asked(Shuffled):
        def loss(self, batch: list[Tensor]) -> BatchLoss:
            if len(self.seen) == 1:
                loop.wish.number = signal.SIGTERM
            return super().loss(batch)

    one = Asked(2)
    loop = loop_of(one, Watch(one), steps=4)
    with pytest.raises(Interrupted):
        loop.run()
    assert one.opened == [(1, 0, 0)] and one.order[-2:] == ["step", "epoch 1"]
