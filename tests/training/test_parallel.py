"""Gradients over processes (gloo on the CPU)."""

from datetime import timedelta
from pathlib import Path
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
import torch.distributed as dist
import torch.multiprocessing

from tests.conftest import ROOT
from training.parallel import GradientBucket
from training.processes import MeetingPoint, Processes

DATA = torch.tensor([[0.3, 1.0], [-1.2, 0.5], [2.0, 0.1], [0.7, -0.9], [1.5, 1.5]])


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def step_once(batch: torch.Tensor, processes: Processes, max_grad_norm: float) -> tuple[torch.Tensor, object]:
    torch.set_num_threads(1)
    net = model()
    bucket = GradientBucket(net.parameters(), processes)
    if len(batch):
        losses = net(batch).pow(2).sum(1)
        losses.sum().backward()
        bucket.add_loss(losses.sum(), len(batch))
    totals = bucket.reduce(max_grad_norm)
    torch.optim.AdamW(net.parameters(), lr=0.01).step()
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()]), totals


def work(rank: int, shares: list[list[int]], folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(shares))
    processes = Processes(rank, len(shares))
    assert processes.gather(rank) == list(range(len(shares)))
    weights, totals = step_once(DATA[shares[rank]], processes, 0.5)
    torch.save({"weights": weights, "samples": totals.samples, "loss": totals.loss}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("shares", [[[0, 1], [2, 3]], [[0, 1, 2], [3]], [[0, 1, 2, 3], []]],
                         ids=["even", "short", "empty"])
def test_two_processes_take_the_step_of_one(shares: list[list[int]], tmp_path: Path) -> None:
    torch.multiprocessing.spawn(work, (shares, str(tmp_path)), nprocs=2)
    expected, totals = step_once(DATA[[0, 1, 2, 3]], Processes(), 0.5)
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(result["weights"], expected, atol=1e-6, rtol=0)
        assert result["samples"] == totals.samples == 4
        assert result["loss"] == pytest.approx(totals.loss, rel=1e-6)


def meet(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                            timeout=timedelta(seconds=3))
    processes = Processes(rank, 2)
    point = MeetingPoint(processes)
    time.sleep(5 * rank)
    point.wait()
    assert processes.gather(rank) == [0, 1]
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_wait_at_a_meeting_point_longer_than_a_collective_would(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(meet, (str(tmp_path),), nprocs=2)


def test_gradients_are_views_of_the_bucket_and_stay_so() -> None:
    net = model()
    bucket = GradientBucket(net.parameters(), Processes())
    places = [parameter.grad.data_ptr() for parameter in net.parameters()]
    for _ in range(2):
        net(DATA).sum().backward()
        bucket.clear()
    assert [parameter.grad.data_ptr() for parameter in net.parameters()] == places
    assert all(not parameter.grad.any() for parameter in net.parameters())


def test_frozen_parameters_have_no_place() -> None:
    net = model()
    net[0].requires_grad_(False)
    assert len(GradientBucket(net.parameters(), Processes()).parameters) == 2


def test_one_process_needs_no_torch_that_was_built_for_several() -> None:
    code = ("import sys, torch; del torch._C._c10d_init\n"
            "for name in [one for one in sys.modules if one.startswith('torch.distributed')]: del sys.modules[name]\n"
            "import torch.distributed; assert not torch.distributed.is_available()\n"
            "from training.processes import Processes; assert Processes().gather(1) == [1]")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
