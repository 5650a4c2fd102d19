"""The next step's first passes, queued before this step's figures are known: order, numbers, whatever ends a run."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
import math
import os
from pathlib import Path
import signal
from typing import Any
import weakref

import pytest
import torch
from torch import Tensor
import torch.distributed as dist
import torch.multiprocessing

from tests.training.line import DATA, Constant, Line, Saves
from training.callbacks import Callback, Outcome, Run, StepReport
from training.guard import Guard, NonFiniteLoss
from training.launch import together
from training.loop import Loop, LoopSettings
from training.parallel import QueuedTotals
from training.passes import BatchLoss
from training.processes import LostProcess, Processes
from training.signals import Interrupted


class Quick(Line):
    """Nothing is done behind its steps; `order` tells what happened, and item `breaks` cannot be computed."""

    works_after_step = False

    def __init__(self, data: Sequence[float] = DATA, batch_size: int = 1, *, breaks: float | None = None) -> None:
        super().__init__(data, batch_size)
        self.order: list[str] = []
        self.breaks = breaks

    def loss(self, batch: list[Tensor]) -> BatchLoss:
        self.order.append(f"loss {float(batch[0][0]):g}")
        if self.breaks is not None and float(batch[0][0]) == pytest.approx(self.breaks):
            raise RuntimeError("out of memory")
        return super().loss(batch)


class Slow(Quick):
    """The same, whose passes are never begun early."""

    works_after_step = True


class Told(Callback):
    def __init__(self, job: Quick) -> None:
        self.job = job
        self.outcome: Outcome | None = None

    def while_computing(self, run: Run) -> None:
        self.job.order.append("draw")

    def on_step(self, run: Run, report: StepReport) -> None:
        assert run.is_between_steps and run.state.step == report.step
        self.job.order.append(f"told {report.step}")

    def on_epoch(self, run: Run) -> None:
        self.job.order.append("epoch")

    def on_end(self, run: Run, outcome: Outcome) -> None:
        self.outcome = outcome


def loop_of(job: Quick, *callbacks: Callback, guard: Guard | None = None, fused: bool = True,
            processes: Processes | None = None, **settings: Any) -> Loop:
    return Loop(job, optimizer=torch.optim.AdamW(job.parameters, lr=0.05, fused=fused), schedule=Constant(),
                settings=LoopSettings(**settings), processes=processes or Processes(), callbacks=callbacks, guard=guard)


def test_the_next_pass_is_queued_before_the_figures_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Quick([1.0, 2.0])
    read = QueuedTotals.read
    monkeypatch.setattr(QueuedTotals, "read", lambda self: one.order.append("read") or read(self))
    loop = loop_of(one, Told(one), steps=3)
    loop.optimizer.register_step_post_hook(lambda *_: one.order.append("step"))
    loop.run()
    assert one.order == ["loss 1", "draw", "step", "loss 2", "read", "told 1",
                         "draw", "step", "loss 1", "read", "told 2", "epoch",
                         "draw", "step", "read", "told 3"], "none beyond the last"


@pytest.mark.parametrize(("kind", "fused"), [(Slow, True), (Quick, False)])
def test_no_pass_is_queued_early_where_weights_may_still_change(kind: type[Quick], fused: bool) -> None:
    one = kind([1.0, 2.0])
    loop_of(one, Told(one), fused=fused, steps=2).run()
    assert one.order == ["loss 1", "draw", "told 1", "loss 2", "draw", "told 2", "epoch"][:len(one.order)]


class Kept(Callback):
    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def on_step(self, run: Run, report: StepReport) -> None:
        self.reports.append(replace(report, seconds=0.0))


@pytest.mark.parametrize("settings", [{}, {"accumulation": 3}, {"cuts": (2, 5)}, {"max_grad_norm": 0.3}], ids=str)
def test_numbers_are_those_of_passes_in_their_turn(settings: dict[str, Any]) -> None:
    found = []
    for kind in (Quick, Slow):
        one, kept = kind(DATA, 2), Kept()
        loop = loop_of(one, kept, steps=9, **settings)
        loop.run()
        found.append((one.weight.detach().clone(), one.seen, kept.reports, loop.state))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1:] == found[1][1:]


def test_accumulated_batches_are_those_of_their_own_step() -> None:
    one = Quick([1.0, 2.0, 3.0])
    loop_of(one, Told(one), steps=4, accumulation=2).run()
    assert one.order == ["loss 1", "loss 2", "draw", "loss 3", "told 1", "draw", "loss 1", "told 2", "epoch", "loss 2",
                         "draw", "loss 3", "told 3", "draw", "told 4", "epoch"]


@pytest.mark.parametrize("settings", [{}, {"accumulation": 2}, {"cuts": (4, 6)}], ids=str)
def test_a_run_goes_on_bit_for_bit_from_the_state_of_any_step(settings: dict[str, Any]) -> None:
    class Weighed(Saves):
        def on_step(self, run: Run, report: StepReport) -> None:
            super().on_step(run, report)
            state = loop.optimizer.state[one.weight]
            weights[report.step] = [one.weight.detach().clone(), {name: value.clone() for name, value in state.items()}]

    one, weights = Quick(DATA[:5]), {}
    kept = Weighed()
    loop = loop_of(one, kept, steps=9, **settings)
    loop.run()
    for step, (weight, moments) in weights.items():
        rest = Quick(DATA[:5])
        rest.weight.data.copy_(weight)
        after = loop_of(rest, steps=9, **settings)
        after.optimizer.state[rest.weight] = moments
        after.state, after.is_resumed = replace(kept.at[step][0]), True
        after.run()
        assert torch.equal(rest.weight, one.weight), step


def test_an_error_of_a_pass_comes_behind_the_step_before_it() -> None:
    one = Quick([1.0, 2.0, 3.0], breaks=3.0)
    told = Told(one)
    loop = loop_of(one, told, steps=3)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.run()
    assert one.order[-2:] == ["loss 3", "told 2"] and told.outcome is Outcome.FAILED
    assert loop.state.step == 2 and loop.state.batches_in_epoch == 2 and loop.is_between_steps


def test_an_error_that_waits_for_its_turn_keeps_nothing_of_its_pass() -> None:
    class Full(Quick):
        def loss(self, batch: list[Tensor]) -> BatchLoss:
            kept = torch.ones(4) * self.weight.sum()
            if float(batch[0][0]) == 2.0:
                held.append(weakref.ref(kept))
                raise torch.OutOfMemoryError("out of memory")
            return super().loss(batch)

    class Looks(Told):
        def on_step(self, run: Run, report: StepReport) -> None:
            super().on_step(run, report)
            alive.append([one() is not None for one in held])

    held: list[weakref.ref[Tensor]] = []
    alive: list[list[bool]] = []
    one = Full([1.0, 2.0, 3.0])
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        loop_of(one, Looks(one), steps=3).run()
    assert alive == [[False]], "a look at the run would have no room beside it"


def test_a_refused_step_is_told_with_its_own_items_and_leaves_the_weights() -> None:
    one = Quick([1.0, 2.0, float("nan"), 4.0])
    loop = loop_of(one, steps=4)
    kept: list[Tensor] = []
    loop.optimizer.register_step_pre_hook(lambda *_: kept.append(one.weight.detach().clone()))
    with pytest.raises(NonFiniteLoss, match=r"step 3: the loss is not finite.*item nan \(loss nan\)"):
        loop.run()
    assert one.order[-1] == "loss 4", "the pass behind it was queued"
    assert torch.equal(one.weight, kept[2]) and loop.optimizer.state[one.weight]["step"] == 2
    assert loop.state.step == 2 and loop.is_between_steps


@pytest.mark.parametrize("outcome", [Outcome.FINISHED, Outcome.INTERRUPTED])
def test_a_pass_that_was_begun_counts_for_nothing_where_the_run_stops(outcome: Outcome) -> None:
    class Ends(Told):
        def on_step(self, run: Run, report: StepReport) -> None:
            super().on_step(run, report)
            if report.step == 2 and outcome is Outcome.FINISHED:
                run.stop("enough")
            elif report.step == 2:
                signal.raise_signal(signal.SIGTERM)

    one, right = Quick([1.0, 2.0, 3.0, 4.0]), Quick([1.0, 2.0, 3.0, 4.0])
    told = Ends(one)
    loop = loop_of(one, told, steps=4)
    with nullcontext() if outcome is Outcome.FINISHED else pytest.raises(Interrupted):
        loop.run()
    loop_of(right, steps=2).run()
    assert told.outcome is outcome and one.order[-2:] == ["loss 3", "told 2"]
    assert torch.equal(one.weight, right.weight)
    assert (loop.state.step, loop.state.batches_in_epoch, loop.state.samples) == (2, 2, 2)


def test_a_part_that_has_no_batch_waits_for_its_turn() -> None:
    class Partless(Quick):
        def batches(self, epoch: int, step: int, start: int) -> Any:
            yield from [self._batches[0], None, self._batches[1]][start:]

    one = Partless([1.0, 2.0])
    loop = loop_of(one, Told(one), steps=2, accumulation=2)
    loop.run()
    assert one.order == ["loss 1", "draw", "loss 2", "told 1", "draw", "told 2", "epoch"]


def part_of(kind: type[Quick], rank: int, what: str) -> Quick:
    """The part of one of two processes, of which the second has half as many batches or meets `what` in its third."""
    class Part(kind):  # type: ignore[misc, valid-type]
        count = 0

        def batches(self, epoch: int, step: int, start: int) -> Any:
            own = self._batches[rank::2]
            yield from ([own[0], None, own[1], None] if what == "no batch" and rank else own)[start:]

        def loss(self, batch: list[Tensor]) -> BatchLoss:
            self.count += 1
            found = super().loss(batch)
            if not rank or self.count != 3:
                return found
            if what == "signal":
                signal.raise_signal(signal.SIGTERM)
            elif what == "error":
                raise ValueError("broken")
            factor = math.nan if what == "no number" else 1.0
            return BatchLoss(found.total * factor, found.per_sample * factor, found.names)

    job = Part(DATA)
    job.batches_per_epoch = 4
    return job


def in_two_processes(rank: int, folder: str, what: str) -> None:
    torch.set_num_threads(1)
    for kind in (Quick, Slow):
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet{kind.__name__}", rank=rank, world_size=2,
                                timeout=timedelta(seconds=20))
        job, kept, processes = part_of(kind, rank, what), Kept(), Processes(rank, 2)
        loop = loop_of(job, kept, processes=processes, steps=7)
        end = "finished"
        try:
            with together(processes):
                loop.run()
        except (Interrupted, NonFiniteLoss, LostProcess, ValueError) as error:
            end = f"{type(error).__name__}: {error}"
        Path(folder, f"{kind.__name__}{rank}.txt").write_text(
            f"{end}\n{loop.state} {loop.is_between_steps} {kept.reports} {job.weight.tolist()}")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX sends them")
@pytest.mark.parametrize(("what", "ends"), [
    ("nothing", ["finished"] * 2), ("no batch", ["finished"] * 2), ("signal", ["Interrupted: SIGTERM"] * 2),
    ("no number", ["NonFiniteLoss: step 3"] * 2),
    ("error", ["LostProcess: process 1: ValueError", "ValueError: broken"]),
])
def test_two_processes_end_as_with_passes_in_their_turn(tmp_path: Path, what: str, ends: list[str]) -> None:
    torch.multiprocessing.spawn(in_two_processes, (str(tmp_path), what), nprocs=2)
    quick, slow = ([(tmp_path / f"{kind.__name__}{rank}.txt").read_text() for rank in range(2)]
                   for kind in (Quick, Slow))
    assert quick == slow
    assert all(text.startswith(end) for text, end in zip(quick, ends, strict=True)), quick
