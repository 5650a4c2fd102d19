"""Blocks recomputed from inputs in host memory: the same gradients bit for bit, and nothing kept on the device."""

from collections.abc import Callable, Collection
import gc
from typing import Any
import weakref

import pytest
import torch
from torch import Tensor

from networks.lora_wan import create_network
from networks.network import Network
from tests.tiny_dit import tiny_dit, tiny_inputs
from tests.wan.memory.late_transfers import LateTransfers
from tests.wan.memory.test_blocks import Everywhere, Inside, gradients, trained
from wan.memory.blocks import run_blocks
from wan.memory.offload import ActivationOffload
from wan.memory.recompute import recomputes_blocks
from wan.memory.swap import BlockSwap
from wan.memory.transfers import PlainTransfers
from wan.modules import attention_halves
from wan.modules.dit import WanDiT
from wan.modules.hooks import Forward, Hooks

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


@pytest.mark.parametrize("attention", [(), (0, 2), range(4)])
@pytest.mark.parametrize("swapped", [0, 3])
@pytest.mark.parametrize("transfers", TRANSFERS)
def test_gradients_are_bit_equal_dropout_included(transfers: str, swapped: int, attention: Collection[int]) -> None:
    plain, dit = tiny_dit(), tiny_dit()
    expected = _steps(plain, _network(plain))
    if swapped:
        BlockSwap(dit, swapped, transfers=TRANSFERS[transfers]())
    ActivationOffload(dit, attention=attention, transfers=TRANSFERS[transfers]())
    assert recomputes_blocks(dit)
    found = _steps(dit, _network(dit))
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("hooks", [None, Everywhere, Inside])
@pytest.mark.parametrize("compiled", [False, True])
def test_kept_attention_goes_with_conditions_and_compiled_blocks(compiled: bool, hooks: type[Any] | None) -> None:
    plain, dit = tiny_dit(), tiny_dit()
    expected = gradients(plain, trained(plain), hooks)
    run_blocks(dit, ["none"] * 4, compiled=compiled, backend="aot_eager")
    BlockSwap(dit, 2, transfers=LateTransfers())
    ActivationOffload(dit, attention=range(1, 4), transfers=LateTransfers())
    network = trained(dit)
    for _ in range(2):
        torch.testing.assert_close(gradients(dit, network, hooks), expected, atol=1e-5, rtol=1e-5)


def test_compiled_kept_attention_makes_no_graph_in_the_second_step() -> None:
    """What comes back lies as what was computed."""
    dit = tiny_dit()
    runner = run_blocks(dit, ["none"] * 4, compiled=True, backend="aot_eager")
    ActivationOffload(dit, attention=range(4), transfers=LateTransfers())
    network = trained(dit)
    torch._dynamo.reset()
    gradients(dit, network)
    _, made = runner.graphs.take()
    assert sum(made.values()) == 4, "to the attention and behind it; the first block's tokens want no gradient"
    gradients(dit, network)
    assert not runner.graphs.take()[1]
    assert not runner.graphs.failures


def test_kept_attention_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    kernel = attention_halves.FLASH_ON_CPU

    def counted(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        computed.append(q.shape)
        return kernel.forward(q, k, v)

    monkeypatch.setattr(attention_halves, "FLASH_ON_CPU", kernel._replace(forward=counted))
    dit, transfers = tiny_dit(), LateTransfers()
    ActivationOffload(dit, attention=range(4), transfers=transfers)
    network = _network(dit)
    loss = (dit(*tiny_inputs()) ** 2).mean()
    assert len(computed) == 4
    statistics = 2 * 2 * 3 * 2 * 3 * 4  # samples, heads, tokens, float32
    assert transfers.copied == 3 * (2 * TOKEN_BYTES + statistics), "of all blocks but the last: input and result"
    loss.backward()
    assert len(computed) == 4
    assert transfers.copied == 6 * (2 * TOKEN_BYTES + statistics)
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


class BlockOfItsOwn(Hooks):
    """Looks at the tokens by a block of its own before each of the model's."""

    def __init__(self, weight: Tensor) -> None:
        self.weight, self.own = weight, tiny_dit(seed=5)

    def before_block(self, i: int, tokens: Tensor, forward: Forward) -> Tensor:
        _, inputs = self.own.embed(*tiny_inputs())
        seen: Tensor = self.own.blocks[i](i, tokens * self.weight, inputs)
        return tokens + 0.1 * seen


def test_a_conditions_own_attention_is_not_taken_for_the_blocks() -> None:
    plain, dit = tiny_dit(), tiny_dit()
    expected = gradients(plain, trained(plain), BlockOfItsOwn)
    ActivationOffload(dit, attention=range(4), transfers=LateTransfers())
    for found, right in zip(gradients(dit, trained(dit), BlockOfItsOwn), expected, strict=True):
        assert torch.equal(found, right)


class Broken(Exception):
    """Of a pass."""


def test_what_a_broken_forward_pass_left_is_let_go_in_the_next_one() -> None:
    dit, alive = tiny_dit(), list[weakref.ref[Tensor]]()
    original = dit.run_block

    def breaks(i: int, tokens: Tensor, inputs: object) -> Tensor:
        if torch.is_grad_enabled():
            alive.append(weakref.ref(tokens))
            if i == 2:
                raise Broken
        return original(i, tokens, inputs)  # type: ignore[arg-type]

    dit.run_block = breaks  # type: ignore[method-assign]
    ActivationOffload(dit, attention=range(4), transfers=LateTransfers())
    _network(dit)
    with pytest.raises(Broken):
        dit(*tiny_inputs())
    gc.collect()
    assert any(one() is not None for one in alive)
    with torch.no_grad():
        dit(*tiny_inputs())
    gc.collect()
    assert not any(one() is not None for one in alive)


def test_copies_of_a_broken_backward_pass_are_waited_for_before_the_next_pass() -> None:
    """Their memory has been given back, and another tensor may lie there by then."""
    dit, transfers = tiny_dit(), LateTransfers()
    original, broken = dit.run_block, [False]

    def breaks(i: int, tokens: Tensor, inputs: object) -> Tensor:
        if broken[0] and i == 2:
            raise Broken
        return original(i, tokens, inputs)  # type: ignore[arg-type]

    dit.run_block = breaks  # type: ignore[method-assign]
    ActivationOffload(dit, attention=range(4), transfers=transfers)
    _network(dit)
    loss = (dit(*tiny_inputs()) ** 2).mean()
    broken[0] = True
    with pytest.raises(Broken):
        loss.backward()
    broken[0] = False
    assert transfers.pending
    last = transfers.pending[-1]
    dit(*tiny_inputs())
    assert last.is_done


def test_a_back_end_without_halves_is_computed_again() -> None:
    plain, dit = tiny_dit(), tiny_dit()
    for one in (plain, dit):
        one.set_attention("math")
    ActivationOffload(dit, attention=range(4), transfers=LateTransfers())
    for found, expected in zip(_steps(dit, _network(dit)), _steps(plain, _network(plain)), strict=True):
        assert torch.equal(found, expected)


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
    ActivationOffload(dit, attention=(1, 3), transfers=LateTransfers())
    network = _network(dit)
    loss = (dit(*tiny_inputs()) ** 2).mean()
    parameters = [p for p in network.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
