"""Blocks recomputed from inputs in host memory: the same gradients bit for bit, and nothing kept on the device."""

from collections.abc import Callable
import gc
import weakref

import pytest
import torch
from torch import Tensor

from networks.lora_wan import create_network
from networks.network import Network
from tests.tiny_dit import tiny_dit, tiny_inputs
from tests.wan.memory.late_transfers import LateTransfers
from wan.memory.offload import ActivationOffload
from wan.memory.recompute import recomputes_blocks
from wan.memory.swap import BlockSwap
from wan.memory.transfers import PlainTransfers
from wan.modules.dit import WanDiT

TRANSFERS: dict[str, Callable[[], PlainTransfers]] = {"early": PlainTransfers, "late": LateTransfers}
TOKEN_BYTES = 2 * 3 * 2 * 3 * 32 * 4
"""Of `tiny_inputs`: 2 samples, 3 frames of 2x3 tokens, 32 wide, float32."""


def _network(dit: WanDiT, dropout: float = 0.2) -> Network:
    torch.manual_seed(7)
    network = create_network(dit, dim=3, alpha=3, dropout=dropout)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1)
    return network.attach().train()


def _steps(dit: WanDiT, network: Network) -> list[Tensor]:
    found = []
    for number, frames in enumerate((3, 1, 5, 3)):  # buckets of other sizes
        torch.manual_seed(number)
        loss = (dit(*tiny_inputs(seed=number, frames=frames)) ** 2).mean()
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
        network.zero_grad()
        with torch.no_grad():
            found.append(dit(*tiny_inputs(seed=10 + number)))
    return found


@pytest.mark.parametrize("swapped", [0, 3])
@pytest.mark.parametrize("transfers", TRANSFERS)
def test_gradients_are_bit_equal_dropout_included(transfers: str, swapped: int) -> None:
    plain, dit = tiny_dit(), tiny_dit()
    expected = _steps(plain, _network(plain))
    if swapped:
        BlockSwap(dit, swapped, transfers=TRANSFERS[transfers]())
    ActivationOffload(dit, transfers=TRANSFERS[transfers]())
    assert recomputes_blocks(dit)
    found = _steps(dit, _network(dit))
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_gradient_flows_into_the_first_input() -> None:
    gradients = []
    for offloads in (False, True):
        dit = tiny_dit()
        if offloads:
            ActivationOffload(dit, transfers=LateTransfers())
        tokens, inputs = dit.embed(*tiny_inputs())
        first = tokens.detach().requires_grad_()
        hidden = first * 1
        for i in range(4):
            hidden = dit.run_block(i, hidden, inputs)
        gradients.append(torch.autograd.grad(hidden.square().sum(), first)[0])
    assert torch.equal(*gradients)


def test_after_the_forward_pass_only_the_last_input_is_on_the_device() -> None:
    dit, transfers = tiny_dit(), LateTransfers()
    alive: list[weakref.ref[Tensor]] = []
    original = WanDiT.run_block

    def watched(i: int, tokens: Tensor, inputs: object) -> Tensor:
        alive.append(weakref.ref(tokens))
        return original(dit, i, tokens, inputs)  # type: ignore[arg-type]

    dit.run_block = watched  # type: ignore[method-assign]
    ActivationOffload(dit, transfers=transfers)
    _network(dit)
    loss = (dit(*tiny_inputs()) ** 2).mean()
    gc.collect()
    assert [one() is not None for one in alive] == [False, False, False, True]
    assert transfers.copied == 3 * TOKEN_BYTES
    loss.backward()
    assert transfers.copied == 6 * TOKEN_BYTES


def test_host_memory_is_used_again() -> None:
    dit, made = tiny_dit(), []

    class Counting(LateTransfers):
        def host(self, nbytes: int) -> Tensor:
            made.append(nbytes)
            return super().host(nbytes)

    ActivationOffload(dit, transfers=Counting())
    network = _network(dit)
    for _ in range(3):
        loss = (dit(*tiny_inputs()) ** 2).mean()
        loss.backward()
        del loss
        network.zero_grad()
    assert made == [TOKEN_BYTES] * 3


def test_a_second_backward_pass_over_the_same_graph_works() -> None:
    dit = tiny_dit()
    ActivationOffload(dit, transfers=LateTransfers())
    network = _network(dit)
    loss = (dit(*tiny_inputs()) ** 2).mean()
    parameters = [p for p in network.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
