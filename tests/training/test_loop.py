"""The loop, with models of two lines."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.line import DATA, Constant, Line, fit
from training.callbacks import Callback, Outcome, Run, RunState, StepReport
from training.checkpoints import CheckpointPlan, Checkpoints
from training.loop import Loop, LoopSettings, NonFiniteLoss
from training.passes import BatchLoss
from training.processes import Processes
from training.telling.reports import ProgressLine, StepLog


class Events(Callback):
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_start(self, run: Run) -> None:
        self.events.append("start")

    def on_step(self, run: Run, report: StepReport) -> None:
        self.events.append(report)

    def on_epoch(self, run: Run) -> None:
        self.events.append(f"epoch {run.state.epoch}")

    def on_save(self, run: Run, path: Path) -> None:
        self.events.append(path.name)

    def on_end(self, run: Run, outcome: Outcome) -> None:
        self.events.append(outcome)

    @property
    def reports(self) -> list[StepReport]:
        return [event for event in self.events if isinstance(event, StepReport)]


def test_accumulating_four_batches_of_one_equals_one_batch_of_four() -> None:
    single, whole = Line(DATA, 1), Line(DATA, 4)
    fit(single, steps=5, accumulation=4)
    fit(whole, steps=5)
    torch.testing.assert_close(single.weight, whole.weight, atol=1e-6, rtol=0)
    assert single.seen == whole.seen


def test_a_short_last_batch_counts_by_its_samples() -> None:
    uneven, whole = Line(DATA[:5], 3), Line(DATA[:5], 5)
    fit(uneven, steps=1, accumulation=2)
    fit(whole, steps=1)
    torch.testing.assert_close(uneven.weight, whole.weight, atol=1e-6, rtol=0)


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    job = Line(DATA[:4], 4)
    expected = nn.Parameter(job.weight.detach().clone())
    (torch.tensor([[value, 1.0] for value in DATA[:4]]) @ expected).pow(2).sum(1).mean().backward()
    assert expected.grad is not None
    fit(job, steps=1, lr=0.1)
    torch.testing.assert_close(job.weight.detach(), expected.detach() - 0.1 * expected.grad)


def test_clipping_limits_the_norm_of_the_whole_gradient() -> None:
    free, clipped, events = Line(DATA, 8), Line(DATA, 8), Events()
    start = free.weight.detach().clone()
    fit(free, events, steps=1, lr=1.0)
    fit(clipped, steps=1, lr=1.0, max_grad_norm=0.01)
    move, small = free.weight.detach() - start, clipped.weight.detach() - start
    assert events.reports[0].grad_norm == pytest.approx(move.norm().item(), rel=1e-5)
    assert small.norm().item() == pytest.approx(0.01, rel=1e-3)
    torch.testing.assert_close(small / small.norm(), move / move.norm(), atol=1e-5, rtol=0)


def test_epochs_count_optimiser_steps_with_a_short_last_one() -> None:
    job, events = Line(DATA[:7]), Events()
    loop = fit(job, events, steps=None, epochs=2, accumulation=3)
    assert loop.total_steps == 6 and loop.state.step == 6 and job.after == 6
    assert [report.samples for report in events.reports] == [3, 3, 1, 3, 3, 1]
    assert job.seen == pytest.approx(DATA[:7] * 2)
    names = [event for event in events.events if isinstance(event, str)]
    assert names == ["start", "epoch 1", "epoch 2"] and events.events[-1] is Outcome.FINISHED


def test_steps_end_a_run_in_the_middle_of_an_epoch() -> None:
    job, events = Line(DATA), Events()
    loop = fit(job, events, steps=10)
    assert (loop.state.step, loop.state.epoch, loop.state.batches_in_epoch) == (10, 2, 2)
    assert loop.total_epochs == 2 and "epoch 2" not in events.events


def test_the_average_looks_back_over_the_last_steps() -> None:
    job, events = Line(DATA), Events()
    fit(job, events, steps=8, lr=0.0)
    losses = [report.loss for report in events.reports]
    assert events.reports[-1].average_loss == pytest.approx(sum(losses) / len(losses))


def test_a_loss_that_is_not_finite_stops_before_the_weights_and_names_the_items() -> None:
    job, events = Line([1.0, 2.0, float("nan"), 3.0], 2), Events()
    optimizer = torch.optim.SGD(job.parameters, lr=0.01)
    loop = Loop(job, optimizer=optimizer, schedule=Constant(), settings=LoopSettings(steps=4, accumulation=1),
                processes=Processes(), callbacks=[events])
    loop.total_steps = 1
    loop.run()
    before = job.weight.detach().clone()
    loop.total_steps = 4
    with pytest.raises(NonFiniteLoss, match=r"step 2: the loss is not finite.*item nan \(loss nan\)") as caught:
        loop.run()
    assert "item 3" not in str(caught.value)
    assert torch.equal(job.weight.detach(), before)
    assert events.events[-1] is Outcome.FAILED


def test_a_gradient_that_is_not_finite_stops_too() -> None:
    class Root(Line):
        def loss(self, batch: list[Tensor]) -> BatchLoss:
            losses = (self.weight * 0).abs().sum().sqrt().reshape(1)
            return BatchLoss(losses.sum(), losses.detach(), ("item zero",))

    with pytest.raises(NonFiniteLoss, match="the gradient is not finite.*item zero"):
        fit(Root(DATA), steps=1)


def plan(folder: Path, **more: Any) -> CheckpointPlan:
    return CheckpointPlan(folder, "name", **more)


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def checkpoints(folder: Path, **more: Any) -> Checkpoints:
    return Checkpoints(plan(folder, **more), lambda path, state: path.write_text(str(state.step)) and None)


def test_checkpoints_have_kohyas_names(tmp_path: Path) -> None:
    fit(Line(DATA[:4]), checkpoints(tmp_path, every_steps=3, every_epochs=1), steps=None, epochs=2)
    assert written(tmp_path) == ["name-000001.safetensors", "name-step00000003.safetensors",
                                 "name-step00000006.safetensors", "name.safetensors"]
    assert (tmp_path / "name.safetensors").read_text() == "8"


def test_old_checkpoints_go_but_never_the_newest(tmp_path: Path) -> None:
    fit(Line(DATA), checkpoints(tmp_path, every_steps=2, keep_steps=4), steps=12)
    assert written(tmp_path) == ["name-step00000008.safetensors", "name-step00000010.safetensors",
                                 "name-step00000012.safetensors", "name.safetensors"]
    (tmp_path / "epochs").mkdir()
    fit(Line(DATA[:2]), checkpoints(tmp_path / "epochs", every_epochs=2, keep_epochs=2), steps=None, epochs=9)
    assert written(tmp_path / "epochs") == ["name-000006.safetensors", "name-000008.safetensors", "name.safetensors"]


def test_the_untrained_network_is_written_first_and_stays(tmp_path: Path) -> None:
    fit(Line(DATA), checkpoints(tmp_path, at_first=True, every_steps=2, keep_steps=2), steps=8)
    assert written(tmp_path) == ["name-step00000000.safetensors", "name-step00000006.safetensors",
                                 "name-step00000008.safetensors", "name.safetensors"]
    assert (tmp_path / "name-step00000000.safetensors").read_text() == "0"


def test_a_run_that_goes_on_writes_no_first_checkpoint(tmp_path: Path) -> None:
    job = Line(DATA)
    loop = Loop(job, optimizer=torch.optim.SGD(job.parameters, lr=0.1), schedule=Constant(),
                settings=LoopSettings(steps=4), processes=Processes(), callbacks=[checkpoints(tmp_path, at_first=True)])
    loop.state = RunState(step=3, epoch=1, is_in_epoch=True, batches_in_epoch=3)
    loop.run()
    assert written(tmp_path) == ["name.safetensors"]


def test_callbacks_hear_of_every_checkpoint(tmp_path: Path) -> None:
    events = Events()
    fit(Line(DATA[:2]), checkpoints(tmp_path, every_steps=1), events, steps=2)
    assert [event for event in events.events if isinstance(event, str)] == [
        "start", "name-step00000001.safetensors", "name-step00000002.safetensors", "epoch 1", "name.safetensors"]


def test_ctrl_c_says_what_is_kept_and_is_passed_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Interrupted(Line):
        def loss(self, batch: list[Tensor]) -> BatchLoss:
            if len(self.seen) == 5:
                raise KeyboardInterrupt
            return super().loss(batch)

    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted(DATA), checkpoints(tmp_path, every_steps=2), steps=8)
    assert written(tmp_path) == ["name-step00000002.safetensors", "name-step00000004.safetensors"]
    assert "interrupted after step 5; kept:" in caplog.text and "name-step00000004" in caplog.text


def test_every_callback_ends_even_when_one_fails(tmp_path: Path) -> None:
    class Broken(Callback):
        def on_end(self, run: Run, outcome: Outcome) -> None:
            raise OSError("disk")

    events = Events()
    with pytest.raises(OSError, match="disk"):
        fit(Line(DATA), Broken(), events, steps=1)
    assert events.events[-1] is Outcome.FAILED, "what comes behind it may not say that all went well"


def test_the_log_holds_one_line_for_every_step(tmp_path: Path) -> None:
    fit(Line(DATA[:3]), StepLog(tmp_path, "first"), steps=4)
    fit(Line(DATA[:3]), StepLog(tmp_path, "second"), steps=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("event") for line in lines] == ["start", None, None, None, None, "finished", "start", None,
                                                     "finished"]
    assert [line["step"] for line in lines if "step" in line and "event" not in line] == [1, 2, 3, 4, 1]
    assert set(lines[1]) == {"step", "epoch", "loss", "loss_average", "lr", "grad_norm", "seconds", "samples"}


def test_plain_lines_are_few_off_a_terminal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(Line(DATA), ProgressLine(), steps=40)
    assert 10 <= len(caplog.messages) <= 12
    assert caplog.messages[0].startswith("step 1/40 epoch 1/5 loss ") and "s/step" in caplog.messages[0]
