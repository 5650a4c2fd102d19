"""Processes of which one is asked to stop: its look at the run ends, all end alike, and none before the first."""

from contextlib import nullcontext
from datetime import timedelta
import os
from pathlib import Path
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
import torch.distributed as dist
import torch.multiprocessing

from tests.training.line import DATA, Constant, Line
from training.callbacks import Callback, Outcome, Run, StepReport
from training.looking import validation
from training.looking.preview_plan import Schedule
from training.looking.previews import Previews
from training.looking.validation import Validation, ValidationSettings
from training.loop import Loop, LoopSettings
from training.processes import Processes
from training.signals import Interrupted

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX sends them")


class Ending(Callback):
    outcome: Outcome | None = None

    def on_end(self, run: Run, outcome: Outcome) -> None:
        self.outcome = outcome


def look(*of: Any) -> None:
    """A look that takes long; the first process is asked to stop in it."""
    if dist.get_rank() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


class LongPreviews(Previews):
    def _make(self, run: Run, piece: Any) -> None:
        look()


def previews(rank: int, folder: str) -> Previews:
    pieces = [SimpleNamespace(number=number, where="here", plan=SimpleNamespace(summary="")) for number in range(2)]
    prepared: Any = SimpleNamespace(
        pieces=pieces, prepared={rank: None}, schedule=Schedule(every_steps=2), folder=Path(folder), name="n",
        pipeline=SimpleNamespace(models=SimpleNamespace(lend=lambda **of: None)))
    nothing: Any = None
    return LongPreviews(prepared, dit=nothing, network=nn.Module(), as_saved=nullcontext)


def measurement(rank: int) -> Validation:
    validation.measure_clip = look  # type: ignore[assignment]
    span = SimpleNamespace(start=0, frames=9, width=32, height=32)
    clips: Any = [SimpleNamespace(name=name, item=SimpleNamespace(content=name), span=span) for name in "ab"]
    job: Any = SimpleNamespace(network=nn.Module(), conditions={})
    found = Validation(job, clips, ValidationSettings(0, (0.5,), 2))
    found.on_start = lambda run: None  # type: ignore[method-assign]
    return found


def work(rank: int, folder: str, kind: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=timedelta(seconds=20))
    torch.set_num_threads(1)
    job, ending = Line(DATA), Ending()
    looks: Callback = previews(rank, folder) if kind == "previews" else measurement(rank)
    run = Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=0.1), schedule=Constant(),
               settings=LoopSettings(steps=20), processes=Processes(rank, 2), callbacks=[looks, ending])
    with pytest.raises(Interrupted) as stop:
        run.run()
    Path(folder, f"{rank}.txt").write_text(f"{run.state.step} {stop.value.number} {ending.outcome}")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["previews", "measurement"])
def test_a_signal_ends_the_look_of_several_processes(tmp_path: Path, kind: str) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path), kind), nprocs=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["2 15 Outcome.INTERRUPTED"] * 2


class SlowPage(Callback):
    """The first process has files to write at the end, the second one is asked to stop."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step(self, run: Run, report: StepReport) -> None:
        if not run.processes.is_main and report.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_end(self, run: Run, outcome: Outcome) -> None:
        if run.processes.is_main:
            time.sleep(2)
            self.path.write_text("written")


def end_after_the_first(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=timedelta(seconds=20))
    torch.set_num_threads(1)
    job, page = Line(DATA), Path(folder, "page.txt")
    run = Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=0.1), schedule=Constant(),
               settings=LoopSettings(steps=20), processes=Processes(rank, 2), callbacks=[SlowPage(page)])
    with pytest.raises(Interrupted):
        run.run()
    assert page.exists(), "a launcher would now end the first process in the middle of it"
    dist.destroy_process_group()


@pytest.mark.slow
def test_no_process_ends_before_the_first_has_written_its_files(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(end_after_the_first, (str(tmp_path),), nprocs=2)
