"""A process of a launch that ends alone: what the others say of it."""

from collections.abc import Callable
from datetime import timedelta
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
import torch.distributed as dist
import torch.multiprocessing

from common.errors import CacheError
from tests.training.line import DATA, Constant, Line
from training.callbacks import Outcome, RunState
from training.guard import NonFiniteLoss
from training.keeping.raw_weights import RawWeights
from training.keeping.state_keeper import StateKeeper, StatePlan
from training.launch import together
from training.looking import preview_clips
from training.loop import Loop, LoopSettings
from training.parallel import StepTotals
from training.passes import BatchLoss
from training.processes import LostProcess, Processes, exchanging


def refuse() -> None:
    raise CacheError("head_003: its file is gone")


def break_down() -> None:
    raise ZeroDivisionError("a defect")


def vanish() -> None:
    os._exit(0)


class Ends(Line):
    """Ends this process in batch number 3, the way it is told."""

    count, how = 0, staticmethod(lambda: None)

    def loss(self, batch: list[Tensor]) -> BatchLoss:
        self.count += 1
        if self.count == 3:
            self.how()
        return super().loss(batch)


def work(rank: int, folder: str, who: int, how: Callable[[], None]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=timedelta(seconds=20))
    torch.set_num_threads(1)
    job = Ends(DATA)
    if rank == who:
        job.how = how  # type: ignore[assignment]
    processes = Processes(rank, 2)
    run = Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=0.1), schedule=Constant(),
               settings=LoopSettings(steps=20), processes=processes)
    try:
        with together(processes):
            run.run()
    except Exception as error:  # noqa: BLE001 - it is what the test is about
        Path(folder, f"{rank}.txt").write_text(f"{type(error).__name__} after step {run.state.step}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize(("who", "how", "expected"), [
    (1, refuse, "process 1: head_003: its file is gone"),
    (0, refuse, "process 0: head_003: its file is gone"),
    (1, break_down, "process 1: ZeroDivisionError: a defect"),
    (1, vanish, "another process of the launch is gone, or does not come, and has not told why ("),
], ids=["second", "first", "defect", "killed"])
def test_who_is_left_says_why_the_other_went(tmp_path: Path, who: int, how: Callable[[], None], expected: str) -> None:
    torch.multiprocessing.spawn(work, (str(tmp_path), who, how), nprocs=2)
    assert (tmp_path / f"{1 - who}.txt").read_text().startswith(f"LostProcess after step 2: {expected}")
    own = tmp_path / f"{who}.txt"
    assert not own.exists() if how is vanish else "LostProcess" not in own.read_text()


def test_an_error_of_another_kind_is_no_lost_process() -> None:
    with pytest.raises(RuntimeError, match="out of memory"), exchanging():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(LostProcess), exchanging():
        raise dist.DistBackendError("NCCL error")


class FullDisk(Processes):
    """The second of two processes, whose first one meets a full disk in all that it makes."""

    def __init__(self) -> None:
        super().__init__(rank=1, count=2)

    def gather(self, value: Any) -> list[Any]:
        return [(None, OSError(28, "No space left on device")), value]

    def wait(self) -> None:
        pass


def no_write(path: Path, state: RunState) -> None:
    raise AssertionError("only the first process writes")


def test_raw_weights_that_do_not_fit_end_every_process_alike() -> None:
    run: Any = SimpleNamespace(processes=FullDisk(), state=RunState())
    with pytest.raises(OSError, match="No space left"):
        RawWeights(Path("n.safetensors"), no_write).on_end(run, Outcome.FINISHED)


def test_pictures_of_held_out_clips_that_do_not_fit_end_every_process_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview_clips, "shown_clips", lambda *of: [])
    config: Any = SimpleNamespace(previews=SimpleNamespace(sample_held_out=1),
                                  validation=SimpleNamespace(validation_seed=0),
                                  saving=SimpleNamespace(output_dir=Path("out")))
    with pytest.raises(OSError, match="No space left"):
        preview_clips.held_out_prompts(config, SimpleNamespace(), SimpleNamespace(), FullDisk())  # type: ignore[arg-type]


@pytest.mark.parametrize(("rank", "told"), [(0, 1), (1, 0)])
def test_the_first_process_alone_says_that_no_state_is_saved(rank: int, told: int, tmp_path: Path,
                                                             caplog: pytest.LogCaptureFixture) -> None:
    job = Line(DATA)
    loop = Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=0.1), schedule=Constant(),
                settings=LoopSettings(steps=3), processes=Processes(rank, 2))
    keeper = StateKeeper(StatePlan(tmp_path, "n"), SimpleNamespace(is_sound=True), {})  # type: ignore[arg-type]
    keeper.on_start(loop)
    loop.state.step, loop.error = 2, LostProcess("process 1: gone")
    keeper.on_end(loop, Outcome.FAILED)
    assert len([line for line in caplog.messages if "no state is saved now" in line]) == told


class OtherKnows(Processes):
    """The first of two processes, whose second one met a loss that is no number and knows why."""

    def gather(self, value: Any) -> list[Any]:
        return [value, ([("bad", math.nan)], " (nothing is left to learn)")]


def test_why_a_loss_is_no_number_is_told_though_another_process_knows_it() -> None:
    job = Line(DATA)
    loop = Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=0.1), schedule=Constant(),
                settings=LoopSettings(steps=3), processes=OtherKnows(0, 2))
    calm = BatchLoss(torch.tensor(0.5), torch.tensor([0.5]), ("calm",))
    with pytest.raises(NonFiniteLoss, match=r"Items of the step: bad \(loss nan\)\. .*\(nothing is left to learn\)"):
        loop._refuse(StepTotals(math.nan, 2, math.nan), [calm])
