"""A run that is asked to stop, and one whose loss blows up."""

from datetime import timedelta
import math
import os
from pathlib import Path
import signal
from typing import Any

import pytest
import torch
from torch import Tensor, nn
import torch.distributed as dist
import torch.multiprocessing

from common.errors import run as run_script
from tests.training.line import DATA, Constant, Line, fit
from training.callbacks import Callback, Outcome, Run, StepReport
from training.guard import ExplodedLoss, Guard
from training.keeping.snapshot import Snapshot
from training.loop import Loop, LoopSettings
from training.passes import BatchLoss
from training.processes import Processes
from training.signals import Interrupted, StopWish

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX sends them")


class Ends(Callback):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.outcome: Outcome | None = None
        self.was_between = True

    def on_step(self, run: Run, report: StepReport) -> None:
        self.steps.append(report.step)

    def on_end(self, run: Run, outcome: Outcome) -> None:
        self.outcome, self.was_between = outcome, run.is_between_steps


def loop(job: Line, *callbacks: Callback, **settings: Any) -> Loop:
    return Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=0.1), schedule=Constant(),
                settings=LoopSettings(**settings), processes=Processes(), callbacks=callbacks)


class Signalled(Line):
    """Sends this process a signal while it computes the loss of batch number `at`."""

    at, number, count = 5, signal.SIGTERM, 0

    def loss(self, batch: list[Tensor]) -> BatchLoss:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), self.number)
        return super().loss(batch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_its_step_and_handlers_come_back(number: int) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    job, ends = Signalled(DATA), Ends()
    job.number = number
    with pytest.raises(Interrupted) as caught:
        loop(job, ends, steps=20).run()
    assert caught.value.number == number and ends.outcome is Outcome.INTERRUPTED and ends.was_between
    assert ends.steps == [1, 2, 3, 4, 5]
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_in_the_middle_of_accumulation_leaves_the_step_out() -> None:
    job, ends = Signalled(DATA), Ends()
    run = loop(job, ends, steps=20, accumulation=4)
    with pytest.raises(Interrupted):
        run.run()
    assert ends.steps == [1] and (run.state.step, run.state.batches_in_epoch) == (1, 4)
    whole = Line(DATA)
    fit(whole, steps=1, accumulation=4)
    assert torch.equal(job.weight, whole.weight)


def test_a_second_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopWish, "ECHO_S", 0.0)
    class Twice(Signalled):
        def loss(self, batch: list[Tensor]) -> BatchLoss:
            result = super().loss(batch)
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
            return result

    ends = Ends()
    run = loop(Twice(DATA), ends, steps=20)
    with pytest.raises(Interrupted):
        run.run()
    assert ends.steps == [1, 2, 3, 4]
    assert not Snapshot(run, nn.Module(), lambda path: None).is_sound, "it may have come anywhere"


def test_the_echo_of_a_signal_is_not_a_second_one() -> None:
    class Echoed(Signalled):
        def loss(self, batch: list[Tensor]) -> BatchLoss:
            if self.count + 1 == self.at:
                os.kill(os.getpid(), signal.SIGINT)
            return super().loss(batch)

    ends = Ends()
    with pytest.raises(Interrupted) as caught:
        loop(Echoed(DATA), ends, steps=20).run()
    assert ends.steps == [1, 2, 3, 4, 5] and ends.was_between and caught.value.number == signal.SIGINT


class AskedBetween(Ends):
    """Asks the first process alone to stop, when step 3 is over and the others are at the next one."""

    def on_step(self, run: Run, report: StepReport) -> None:
        super().on_step(run, report)
        if run.processes.is_main and report.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def stop_together(rank: int, folder: str, by_file: bool, last: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=timedelta(seconds=20))
    torch.set_num_threads(1)
    job, ends = Line(DATA), Ends() if by_file else AskedBetween()
    run = Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=0.1), schedule=Constant(),
               settings=LoopSettings(steps=20), processes=Processes(rank, 2), callbacks=[ends])
    if by_file:
        def asked() -> bool:
            run.wish.number = signal.SIGINT if run.state.step == last - 1 else None
            return False

        run.is_state_due = asked
    with pytest.raises(Interrupted):
        run.run()
    Path(folder, f"{rank}.txt").write_text(f"{ends.steps} {run.processes.gather(run.state.step)}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(("by_file", "last"), [(False, 4), (True, 4), (True, 8)],
                         ids=["signal", "save_quit", "save_quit at an epoch's end"])
def test_processes_stop_after_the_same_step_whenever_one_of_them_is_asked(tmp_path: Path, by_file: bool, last: int
                                                                          ) -> None:
    """At an epoch's end only those that were not asked have begun to read the next one."""
    torch.multiprocessing.spawn(stop_together, (str(tmp_path), by_file, last), nprocs=2)
    expected = f"{list(range(1, last + 1))} [{last}, {last}]"
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == [expected] * 2


def test_a_look_at_the_run_ends_at_once_and_is_not_begun_after_a_signal() -> None:
    wish, seen = StopWish(), []
    with wish.heeded():
        with pytest.raises(Interrupted), wish.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append("looked on")
        with pytest.raises(Interrupted), wish.interruptible():
            seen.append("began")
    assert seen == []


def test_a_run_that_ends_with_its_last_step_is_finished_though_it_was_asked_to_stop() -> None:
    ends = Ends()
    loop(Signalled(DATA), ends, steps=5).run()
    assert ends.outcome is Outcome.FINISHED


def test_exit_codes_tell_the_signal(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped() -> int:
        raise Interrupted(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        run_script(stopped)
    assert caught.value.code == 143 and "stopped by SIGTERM" in capsys.readouterr().err


def test_a_callback_ends_the_run_with_a_reason(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step(self, run: Run, report: StepReport) -> None:
            if report.step == 7:
                run.stop("enough")

    ends = Ends()
    run = loop(Line(DATA), Stop(), ends, steps=20)
    run.run()
    assert ends.steps == list(range(1, 8)) and ends.outcome is Outcome.FINISHED and run.stop_reason == "enough"


def test_an_exploded_loss_stops_before_the_weights_and_names_the_items() -> None:
    job = Line([*DATA, *DATA, *DATA, 300.0, 0.1])
    run = Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=1e-4), schedule=Constant(),
               settings=LoopSettings(steps=26), processes=Processes(), guard=Guard(100.0))
    with pytest.raises(ExplodedLoss, match=r"step 25: the loss is .* times the median.*item 300 .*--explosion_factor"):
        run.run()
    calm = Line(job.seen[:24])
    fit(calm, steps=24, lr=1e-4)
    assert torch.equal(job.weight, calm.weight)


def test_the_guard_waits_looks_back_and_can_be_switched_off() -> None:
    guard, off = Guard(10.0), Guard(0.0)
    for step in range(Guard.SMALLEST):
        loss = 1000.0 if step == 3 else 1.0
        assert guard.limits() == (math.inf, math.inf) and not guard.finds(loss, 1.0)
        guard.count(loss, 1.0)
        off.count(10.0**step, 1.0)
    assert guard.limits() == (10.0, 100.0) and off.limits() == (math.inf, math.inf)
    assert "the loss is 11, 11 times the median" in guard.finds(11.0, 1.0)
    assert not guard.finds(9.0, 1.0) and not guard.finds(1.0, 99.0)
    assert "the gradient's norm is 101" in guard.finds(1.0, 101.0)
    assert not off.finds(1e30, 1.0)
