"""Block swap changes no bit of outputs and gradients, leaves nothing on the device, and refuses what it cannot do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError
from networks.lora_wan import create_network
from networks.network import Network
from tests.tiny_dit import tiny_dit, tiny_inputs, tiny_variant
from tests.wan.memory.late_transfers import LateTransfers
from wan.memory.fp8 import Fp8Linear, Fp8Settings
from wan.memory.fp8_model import use_fp8_linears
from wan.memory.recompute import RunBlock, recompute_blocks, recomputes_blocks, wrap, wrappers
from wan.memory.swap import ALIGNMENT, BlockSwap, parts_of, spread
from wan.memory.transfers import PlainTransfers
from wan.modules.dit import WanDiT

LAYERS = 5
TRANSFERS: dict[str, Callable[[], PlainTransfers]] = {"early": PlainTransfers, "late": LateTransfers}


def _dit(*, fp8: bool = False, dtype: torch.dtype = torch.float32) -> WanDiT:
    dit = tiny_dit(tiny_variant(layers=LAYERS, dim=64, ffn_dim=128), dtype=dtype)
    if not fp8:
        return dit
    state = dit.state_dict()
    for name in use_fp8_linears(dit, Fp8Settings()):
        layer = dit.get_submodule(name)
        assert isinstance(layer, Fp8Linear)
        layer.store(state[f"{name}.weight"])
        layer.bias = torch.nn.Parameter(state[f"{name}.bias"], requires_grad=False)
    return dit


def _network(dit: WanDiT, **args: float) -> Network:
    torch.manual_seed(7)
    network = create_network(dit, dim=3, alpha=3, **args)  # type: ignore[arg-type]
    for parameter in network.parameters():
        parameter.data.normal_(std=0.1)
    return network.attach().train()


def _losses_and_gradients(dit: WanDiT, network: Network, passes: int = 2) -> list[Tensor]:
    """Two training steps with a pass without gradients in between, as a validation would make."""
    found = []
    for number in range(passes):
        torch.manual_seed(number)
        loss = (dit(*tiny_inputs(seed=number)) ** 2).mean()
        loss.backward()
        found += [loss.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
        network.zero_grad()
        with torch.no_grad():
            found.append(dit(*tiny_inputs(seed=10 + number)))
    return found


def _equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("transfers", TRANSFERS)
@pytest.mark.parametrize("ring", [1, 2, 3])
@pytest.mark.parametrize("count", range(1, LAYERS + 1))
def test_outputs_and_gradients_are_bit_equal(count: int, ring: int, transfers: str) -> None:
    plain = _dit()
    expected = _losses_and_gradients(plain, _network(plain))
    dit = _dit()
    swap = BlockSwap(dit, count, ring=ring, transfers=TRANSFERS[transfers]())
    recompute_blocks(dit)
    assert len(swap.blocks) == count
    assert _equal(_losses_and_gradients(dit, _network(dit)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_weights_and_their_scales_are_swapped_too(dtype: torch.dtype) -> None:
    plain = _dit(fp8=True, dtype=dtype)
    expected = _losses_and_gradients(plain, _network(plain))
    dit = _dit(fp8=True, dtype=dtype)
    names = {name for block in (1, 3) for name, _ in dit.blocks[block].named_buffers()}
    assert "self_attn.q.scale_weight" in names
    BlockSwap(dit, 4, transfers=LateTransfers())
    recompute_blocks(dit)
    assert _equal(_losses_and_gradients(dit, _network(dit)), expected)


def test_dropouts_are_repeated() -> None:
    plain = _dit()
    expected = _losses_and_gradients(plain, _network(plain, dropout=0.3))
    dit = _dit()
    BlockSwap(dit, 3, transfers=LateTransfers())
    recompute_blocks(dit)
    assert _equal(_losses_and_gradients(dit, _network(dit, dropout=0.3)), expected)


def test_several_forward_passes_before_one_backward_pass() -> None:
    def gradients(dit: WanDiT, network: Network) -> list[Tensor]:
        total = sum((dit(*tiny_inputs(seed=seed)) ** 2).mean() for seed in range(3))
        assert isinstance(total, Tensor)
        return list(torch.autograd.grad(total, [p for p in network.parameters() if p.requires_grad]))

    plain, dit = _dit(), _dit()
    expected = gradients(plain, _network(plain))
    BlockSwap(dit, 4, transfers=LateTransfers())
    recompute_blocks(dit)
    assert _equal(gradients(dit, _network(dit)), expected)


def test_blocks_may_run_alone_and_in_any_order() -> None:
    plain, dit = _dit(), _dit()
    BlockSwap(dit, LAYERS, ring=2, transfers=LateTransfers())
    with torch.no_grad():
        for one in (plain, dit):
            tokens, inputs = one.embed(*tiny_inputs())
            for i in (4, 0, 0, 3, 1, 4):
                tokens = one.run_block(i, tokens, inputs)
            if one is plain:
                expected = tokens
    assert torch.equal(tokens, expected)


def test_on_the_device_is_the_ring_alone() -> None:
    dit = _dit()
    swap = BlockSwap(dit, 4, ring=2)
    one = sum(-(-p.nbytes // ALIGNMENT) * ALIGNMENT for p in dit.blocks[0].parameters())
    assert (swap.host_bytes, swap.ring_bytes) == (4 * one, 2 * one)
    recompute_blocks(dit)
    _losses_and_gradients(dit, _network(dit))
    rings = {slot.buffer.untyped_storage().data_ptr() for slot in swap._ring}
    hosts = {i: host.untyped_storage().data_ptr() for i, host in swap._hosts.items()}
    for i in swap.blocks:
        places = {parameter.untyped_storage().data_ptr() for parameter in dit.blocks[i].parameters()}
        assert places in ({hosts[i]}, rings)


def test_a_training_step_copies_no_more_than_it_must() -> None:
    """Forward N - k at most, backward N - k: the last k of the forward pass are the first k of the backward pass."""
    dit, transfers, count, ring = _dit(), LateTransfers(), 4, 2
    swap = BlockSwap(dit, count, ring=ring, transfers=transfers)
    recompute_blocks(dit)
    network = _network(dit)
    one = swap.host_bytes // count
    copied = []
    for number in range(3):
        before = transfers.copied
        (dit(*tiny_inputs(seed=number)) ** 2).mean().backward()
        copied.append((transfers.copied - before) // one)
    assert copied == [count + count - ring, 2 * (count - ring), 2 * (count - ring)]
    assert network is not None


def test_a_gradient_without_recomputation_is_refused_in_words() -> None:
    dit = _dit()
    BlockSwap(dit, 2)
    _network(dit)
    with pytest.raises(ConfigError, match="--gradient_checkpointing"):
        dit(*tiny_inputs())
    with torch.no_grad():
        assert dit(*tiny_inputs()).isfinite().all()


def test_weights_that_autograd_kept_end_in_an_error_and_not_in_a_wrong_gradient() -> None:
    dit = _dit()
    BlockSwap(dit, LAYERS, ring=2)
    _network(dit)

    def says_so_only(run_block: RunBlock, *args: Any) -> Tensor:
        return run_block(*args)

    says_so_only.recomputes_blocks = True  # type: ignore[attr-defined]
    wrap(dit, says_so_only)
    loss = (dit(*tiny_inputs()) ** 2).mean()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_step_that_broke_off_leaves_no_lock() -> None:
    plain, dit = _dit(), _dit()
    expected = _losses_and_gradients(plain, _network(plain))
    BlockSwap(dit, LAYERS, ring=1, transfers=LateTransfers())
    recompute_blocks(dit)
    network = _network(dit)

    class Broken(RuntimeError):
        pass

    def breaks(gradient: Tensor) -> None:
        raise Broken

    tokens, inputs = dit.embed(*tiny_inputs())
    for i in range(LAYERS):
        tokens = dit.run_block(i, tokens, inputs)
        if i == 2:
            tokens.register_hook(breaks)
    with pytest.raises(Broken):
        tokens.sum().backward()
    network.zero_grad()
    assert _equal(_losses_and_gradients(dit, network), expected)


def test_trained_blocks_and_impossible_numbers_are_refused() -> None:
    dit = _dit()
    for count, ring in ((0, 2), (LAYERS + 1, 2), (1, 0)):
        with pytest.raises(ConfigError, match="cannot be swapped"):
            BlockSwap(dit, count, ring=ring)
    dit.blocks[2].ffn[0].bias.requires_grad_()
    with pytest.raises(ConfigError, match=r"'blocks\.2\.ffn\.0\.bias' is trained"):
        parts_of(dit.blocks[2], "blocks.2")


def test_swapped_blocks_are_evenly_spread() -> None:
    """musubi-tuner's indices for 40 blocks: ((2k + 1) 40) // (2 count)."""
    assert spread(4, 40) == (5, 15, 25, 35)
    assert spread(1, 40) == (20,)
    assert spread(40, 40) == tuple(range(40))
    assert all(len(set(spread(count, 40))) == count for count in range(1, 41))


def test_the_swap_alone_recomputes_nothing_and_says_so() -> None:
    dit = _dit()
    BlockSwap(dit, 2)
    assert not recomputes_blocks(dit)
    recompute_blocks(dit)
    recompute_blocks(dit)
    assert recomputes_blocks(dit) and len([*wrappers(dit)]) == 2
