"""What the host does ahead of its turn: order, errors, and numbers that stay the same."""

from collections.abc import Generator
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from tests.training.line import DATA, Line, fit, loop_of
from tests.training.test_job import batch, job, loss_of
from training.ahead import Ahead
from training.callbacks import Callback, Run
from training.guard import NonFiniteLoss
from training.loss import empty_masks
from training.optimizers import build_optimizer, is_fused_by_default
from training.parallel import GradientBucket
from training.passes import BatchLoss
from training.processes import Processes


class Told(Line):
    """Writes down when batches are fetched, computed and learnt from; fetching number `breaks` fails."""

    def __init__(self, breaks: int | None = None) -> None:
        super().__init__(DATA[:4])
        self.order: list[str] = []
        self.breaks = breaks

    def batches(self, epoch: int, step: int, start: int) -> Generator[list[Tensor], None, None]:
        for number, one in enumerate(super().batches(epoch, step, start)):
            if number == self.breaks:
                raise OSError("no disk")
            self.order.append(f"fetch {number}")
            yield one

    def loss(self, batch: list[Tensor]) -> BatchLoss:
        self.order.append("loss")
        return super().loss(batch)

    def after_step(self) -> None:
        self.order.append("step")


def test_the_next_batch_is_fetched_before_the_step_is_taken_and_none_beyond_the_last() -> None:
    one = Told()
    fit(one, steps=3)
    assert one.order == ["fetch 0", "loss", "fetch 1", "step", "loss", "fetch 2", "step", "loss", "step"]


def test_pictures_are_drawn_between_queueing_a_step_and_taking_it() -> None:
    one = Told()

    class Draws(Callback):
        def while_computing(self, run: Run) -> None:
            assert run.is_between_steps
            one.order.append(f"draw at {run.state.step}")

    fit(one, Draws(), steps=2)
    assert one.order == ["fetch 0", "loss", "fetch 1", "draw at 0", "step", "loss", "draw at 1", "step"]


def test_a_portion_is_fetched_batch_by_batch() -> None:
    one = Told()
    fit(one, epochs=1, accumulation=3)
    assert one.order == ["fetch 0", "loss", "fetch 1", "loss", "fetch 2", "loss", "fetch 3", "step", "loss", "step"]


def test_the_batches_behind_the_end_of_a_phase_are_never_fetched() -> None:
    one = Told()
    fit(one, steps=3, cuts=(2,))
    assert one.order == ["fetch 0", "loss", "fetch 1", "step", "loss", "fetch 0", "step", "loss", "step"]


def test_a_batch_that_cannot_be_read_costs_no_step_before_it() -> None:
    one = Told(breaks=2)
    loop = loop_of(one, steps=4)
    with pytest.raises(OSError, match="no disk"):
        loop.run()
    assert loop.state.step == 2 and loop.state.batches_in_epoch == 2 and one.order[-1] == "step"


def test_an_error_comes_where_the_item_would_have_come() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    ahead = Ahead(items())
    taken = ahead.take(5)
    assert next(taken) == 1
    ahead.look_ahead()
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            ahead.has_next()


def test_what_is_ready_gives_the_same_loss_and_draws_from_no_global_generator() -> None:
    one = job()
    loaded = batch([2, 0])
    plain = loss_of(one, loaded)
    before = torch.get_rng_state()
    ready = one.ready(loaded, one.epoch(1, 0))
    one.ready(loaded, one.epoch(2, 1))  # of the next epoch, whose first batch is fetched before this one is over
    assert torch.equal(torch.get_rng_state(), before)
    again = one.loss(ready)
    assert torch.equal(again.per_sample, plain.per_sample) and again.sigmas == plain.sigmas


def test_totals_read_late_are_those_that_were_queued() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    bucket = GradientBucket([weight], Processes())
    loss = (weight * torch.tensor([3.0, 4.0])).sum()
    loss.backward()
    bucket.add_loss(loss, 1)
    queued = bucket.queue_reduce(1.0, also=[torch.tensor([7.0])])
    totals = queued.read()
    assert (totals.loss, totals.samples, totals.grad_norm, totals.also) == (25.0, 1, 5.0, (7.0,))
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.8]))


def test_a_loss_that_is_no_number_is_told_with_what_the_job_knows() -> None:
    class Empty(Line):
        def loss(self, batch: list[Tensor]) -> BatchLoss:
            found = super().loss(batch)
            return replace(found, total=found.total * torch.nan, per_sample=found.per_sample * torch.nan,
                           hint=lambda: empty_masks(torch.zeros(1, 1, 2)))

    one = Empty(DATA)
    before = one.weight.detach().clone()
    with pytest.raises(NonFiniteLoss, match=r"sample \[0\] of the batch: its loss mask is 0 everywhere"):
        fit(one, steps=1)
    assert torch.equal(one.weight, before)


def test_empty_masks_are_found_by_sample() -> None:
    assert empty_masks(None) == "" == empty_masks(torch.ones(2, 1, 3))
    assert "sample [1]" in empty_masks(torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]]]))


def test_an_optimiser_is_fused_on_cuda_where_nobody_says_otherwise() -> None:
    on_cuda = [{"params": [SimpleNamespace(is_cuda=True)]}]
    assert is_fused_by_default(torch.optim.AdamW, on_cuda, {"weight_decay": 0.1})
    assert not is_fused_by_default(torch.optim.AdamW, on_cuda, {"foreach": True})
    assert not is_fused_by_default(torch.optim.RMSprop, on_cuda, {})
    assert not is_fused_by_default(torch.optim.AdamW, [{"params": [torch.zeros(1)]}], {})
    plain = build_optimizer("adamw", [{"params": [torch.nn.Parameter(torch.ones(2))]}], learning_rate=0.1)
    assert plain.defaults["fused"] is None
