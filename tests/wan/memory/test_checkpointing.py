"""Gradient checkpointing changes no number and wraps the hooks with the block."""

import copy

import torch
from torch import Tensor

from tests.tiny_dit import tiny_dit, tiny_inputs
from wan.memory.checkpointing import disable_checkpointing, enable_checkpointing, is_checkpointing
from wan.modules.dit import WanDiT
from wan.modules.hooks import Forward, Hooks


class Scaling(Hooks):
    """Scales by a trained vector before every block, and counts its calls."""

    def __init__(self, bias: Tensor) -> None:
        self.bias = bias
        self.calls = 0

    def before_block(self, i: int, tokens: Tensor, forward: Forward) -> Tensor:
        self.calls += 1
        return tokens * (1 + self.bias)


def _gradients(dit: WanDiT) -> tuple[list[Tensor], int]:
    weight = dit.blocks[1].self_attn.q.weight.requires_grad_()
    bias = torch.zeros(32, requires_grad=True)
    state = Scaling(bias)
    loss = (dit(*tiny_inputs(), conditions={"scaling": state}) ** 2).mean()
    return list(torch.autograd.grad(loss, [weight, bias])), state.calls


def test_gradients_are_equal_and_hooks_run_again_in_the_backward_pass() -> None:
    dit = tiny_dit()
    plain, plain_calls = _gradients(dit)
    enable_checkpointing(dit)
    recomputed, calls = _gradients(dit)
    assert (plain_calls, calls) == (4, 8)
    for one, other in zip(plain, recomputed, strict=True):
        assert torch.equal(one, other)


def test_it_can_be_switched_off_and_does_nothing_without_gradients() -> None:
    dit, inputs = tiny_dit(), tiny_inputs()
    reference = dit(*inputs)
    enable_checkpointing(dit)
    enable_checkpointing(dit)
    assert is_checkpointing(dit)
    with torch.no_grad():
        assert torch.equal(dit(*inputs), reference)
    disable_checkpointing(dit)
    assert not is_checkpointing(dit)
    assert torch.equal(dit(*inputs), reference)


def test_a_copy_recomputes_its_own_blocks() -> None:
    dit, inputs = tiny_dit(), tiny_inputs()
    enable_checkpointing(dit)
    reference = dit(*inputs)
    twin = copy.deepcopy(dit)
    for parameter in twin.parameters():
        parameter.zero_()
    assert twin(*inputs).abs().max() == 0
    assert torch.equal(dit(*inputs), reference)
