"""What lower precision does to a training step: compiled bfloat16 beside float32, float8 products beside bfloat16."""

from collections.abc import Callable
import math

import pytest
import torch
from torch import Tensor

from networks.lora import LoraNetwork
from networks.lora_wan import create_network
from tests.tiny_dit import tiny_dit, tiny_inputs, tiny_variant
from tests.wan.memory.test_fp8_compute import fp8_dit, relative
from wan.memory.blocks import run_blocks
from wan.modules.dit import WanDiT

BLOCKS = 4
VARIANT = tiny_variant(ffn_dim=64)
"""Sizes that suit float8 products; `fp8_dit` has the same weights."""
E4M3_ERROR = 2**-3 / math.sqrt(12) / math.sqrt(1.5 / math.log(2))
"""Relative error of a number in e4m3 (root mean square). With three bits behind the leading one, steps between 1 and 2
are 1/8 wide, an error is evenly spread over one of them, and numbers whose logarithm is evenly spread have a mean
square of 1.5 / ln 2 there: 2.5 %."""
PRODUCT_ERROR = math.sqrt(2) * E4M3_ERROR
"""Of a product of two such factors, whose errors are independent: 3.5 %."""
PRODUCTS = 6
"""One behind the other in a block: value (query and key stand beside it) and output of the self-attention, query and
output of the cross-attention, both of the feed-forward."""


def trained(dit: WanDiT) -> LoraNetwork:
    """A LoRA on every linear, with both factors filled, the same for every model."""
    network = create_network(dit, dim=4, alpha=4)
    draws = torch.Generator().manual_seed(5)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=draws)
    return network.attach().train()  # type: ignore[return-value]


def step(dit: WanDiT) -> tuple[Tensor, list[Tensor]]:
    """(flow-matching loss of a batch, the LoRA's gradient in each block)"""
    network = trained(dit)
    latents, timestep, text = tiny_inputs()
    target = torch.randn(latents.shape, generator=torch.Generator().manual_seed(8))
    latents.requires_grad_()  # so that the first block's tokens want a gradient as all others do: one graph for all
    loss = (dit(latents, timestep, text).float() - target).square().mean()
    loss.backward()
    vectors: list[list[Tensor]] = [[] for _ in range(BLOCKS)]
    for path, layer in network.layers.items():
        vectors[int(path.split(".")[1])] += [one.grad.flatten() for one in layer.parameters() if one.grad is not None]
    return loss.detach(), [torch.cat(one) for one in vectors]


def compiled(dit: WanDiT) -> WanDiT:
    torch._dynamo.reset()
    run_blocks(dit, ["none"] * BLOCKS, compiled=True, backend="aot_eager", has_dropout=False)
    return dit


@pytest.mark.parametrize("run", [compiled, lambda dit: dit], ids=["compiled", "eager"])
def test_a_bfloat16_step_is_within_a_hundredth_of_float32(run: Callable[[WanDiT], WanDiT]) -> None:
    loss, gradient = step(tiny_dit(VARIANT))
    torch._dynamo.utils.counters.clear()
    rounded_loss, rounded_gradient = step(run(tiny_dit(VARIANT, dtype=torch.bfloat16)))
    assert run is not compiled or torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert relative(rounded_loss, loss) <= 1e-2
    assert 1e-4 < relative(torch.cat(rounded_gradient), torch.cat(gradient)) <= 1e-2


def gradient_limit(block: int) -> float:
    """How far float8 products can move a block's gradient: as many independent errors as products stand on the way.

    That way leads forward through all blocks to the loss, and back from there to this one. The residual path around the
    products only makes the error smaller.
    """
    return PRODUCT_ERROR * math.sqrt(PRODUCTS * (BLOCKS + BLOCKS - block))


def test_gradients_with_float8_products_are_as_far_off_as_their_products_let_them_be() -> None:
    loss, gradients = step(tiny_dit(VARIANT, dtype=torch.bfloat16))
    fast_loss, fast_gradients = step(fp8_dit())
    assert relative(fast_loss, loss) <= PRODUCT_ERROR
    errors = [relative(found, right) for found, right in zip(fast_gradients, gradients, strict=True)]
    for block, error in enumerate(errors):
        assert E4M3_ERROR / 2 < error <= gradient_limit(block)
    # What a block adds to its tokens is a small part of them, so the errors of few products are seen: of the two that a
    # LoRA's gradient is made of (its input, and the gradient that comes back), and of as many again.
    assert relative(torch.cat(fast_gradients), torch.cat(gradients)) <= 2 * PRODUCT_ERROR


def test_float8_products_leave_the_size_of_gradients_as_it_is() -> None:
    """Rounding to the nearest has no direction: what is off stands across the gradient, not along it."""
    _, gradients = step(tiny_dit(VARIANT, dtype=torch.bfloat16))
    _, fast = step(fp8_dit())
    for found, right in zip(fast, gradients, strict=True):
        along = (found @ right / right.square().sum()).item()
        assert abs(along - 1) < PRODUCT_ERROR
