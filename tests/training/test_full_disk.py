"""Which files a run can do without: where they cannot be written it goes on, and says so."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.line import DATA, Line, Measured, fit, go_on, loop_of
from training.callbacks import Callback, Outcome, Run, RunState, StepReport
from training.checkpoints import CheckpointPlan, Checkpoints
from training.keeping.best import BestCheckpoint, Metric
from training.keeping.run_record import FILE, RecordKeeper, RunRecord
from training.telling.loss_plot import LossHistory
from training.telling.noise_levels import NoiseLevels
from training.telling.reports import StepLog
from training.telling.summary import PAGE, RunSummary, Sources


def blocked(path: Path) -> Path:
    """A folder with content where a file shall come, which no rename can replace."""
    (path / "here").mkdir(parents=True)
    return path


def write(path: Path, state: RunState) -> None:
    if path.is_dir():
        raise OSError(28, "No space left on device", str(path))
    path.write_text(str(state.step))


class Drawn(Line):
    """Tells a noise level of every item."""

    def loss(self, batch: list[torch.Tensor]) -> Any:
        from dataclasses import replace

        return replace(super().loss(batch), sigmas=(0.5,) * len(batch))


def test_pictures_tables_and_pages_do_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("loss_history.png", "loss_history.json", "timesteps.png", PAGE, FILE):
        blocked(tmp_path / name)
    callbacks = [StepLog(tmp_path, "n"), LossHistory(tmp_path, "n", 2), NoiseLevels(tmp_path, lambda: [0.02] * 50,
                                                                                  title="n", every=2),
                 RecordKeeper(tmp_path, RunRecord(name="n")), RunSummary(Sources(tmp_path, "n"))]
    loop = fit(Drawn(DATA), *callbacks, steps=4)
    assert loop.state.step == 4
    assert [one.failures for one in callbacks] == [0, 4, 2, 2, 1]
    told = [line for line in caplog.messages if "could not be written" in line]
    assert len(told) == 4, "each once"


def test_a_checkpoint_that_does_not_fit_is_told_and_the_older_one_stays(tmp_path: Path,
                                                                        caplog: pytest.LogCaptureFixture) -> None:
    plan = CheckpointPlan(tmp_path, "n", every_steps=2, keep_steps=1)
    blocked(plan.at_step(4))
    checkpoints = Checkpoints(plan, write)
    fit(Line(DATA), checkpoints, steps=5)
    assert plan.at_step(2).read_text() == "2" and plan.final.read_text() == "5" and checkpoints.failures == 1
    assert "n-step00000004.safetensors could not be written" in caplog.text


def test_a_best_file_that_does_not_fit_is_tried_again(tmp_path: Path) -> None:
    room = {"is_there": False}

    def try_to_write(path: Path, state: RunState) -> None:
        if not room["is_there"]:
            raise OSError(28, "No space left on device")
        path.write_text(str(state.step))

    class Room(Callback):
        def on_step(self, run: Run, report: StepReport) -> None:
            room["is_there"] = report.step >= 1

    best = BestCheckpoint(tmp_path / "best", try_to_write, Metric())
    fit(Line(DATA), best, Measured(4.0, 3.0, 2.0, 1.5), Room(), steps=3)
    assert (tmp_path / "best").read_text() == "3" and best.step == 3 and best.failures == 1


def test_a_result_that_does_not_fit_fails_for_all_who_tell_of_the_end(tmp_path: Path) -> None:
    plan = CheckpointPlan(tmp_path, "n")
    blocked(plan.final)
    with pytest.raises(OSError, match="No space left"):
        fit(Line(DATA), Checkpoints(plan, write), StepLog(tmp_path, "n"), RecordKeeper(tmp_path, RunRecord(name="n")),
            steps=2)
    record = json.loads((tmp_path / FILE).read_text())
    assert record["status"] == "failed" and "No space left" in record["reason"]
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["event"] == Outcome.FAILED.value


@pytest.mark.skipif(os.name == "nt", reason="/dev/full is Linux's")
def test_figures_wait_for_room_and_no_state_is_saved_without_them(tmp_path: Path) -> None:
    """First nothing fits, then seven bytes of a line do, then all."""
    log = StepLog(tmp_path, "n")

    class Narrow:
        """A file on a disk that is full from step 2 to step 3."""

        closed = False

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 1 << 20

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(28, "No space left on device")
            count = self.file.write(data[:self.room])
            self.room -= count
            return int(count)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    class Fills(Callback):
        def on_start(self, run: Run) -> None:
            log._file = self.disk = Narrow(log._file)  # type: ignore[assignment]

        def on_step(self, run: Run, report: StepReport) -> None:
            self.disk.room = {1: 7, 2: 0}.get(report.step, 1 << 20)
            if report.step in (2, 3):
                with pytest.raises(OSError, match="not on the disk"):
                    log.remembered()

    fit(Line(DATA), log, Fills(), steps=5)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5] and log.failures == 2


def test_a_run_that_goes_on_deletes_the_checkpoints_that_it_wrote_before(tmp_path: Path) -> None:
    plan = CheckpointPlan(tmp_path, "n", every_steps=1, every_epochs=1, keep_steps=2, keep_epochs=1)
    for other in (plan.at_step(90), tmp_path / "m-step00000001.safetensors"):
        other.write_text("not ours")
    before = Checkpoints(plan, write)
    first = loop_of(Line(DATA[:2]), before, steps=4)
    first.run()
    after = Checkpoints(plan, write)
    go_on(Line(DATA[:2]), after, state=first.state, memory={"checkpoints": before.remembered()}, steps=9)
    steps = sorted(path.name for path in tmp_path.glob("n-step*"))
    assert steps == [f"n-step{step:08d}.safetensors" for step in (7, 8, 9, 90)]
    assert [path.name for path in tmp_path.glob("n-0*")] == ["n-000004.safetensors"]
    assert (tmp_path / "m-step00000001.safetensors").exists()
