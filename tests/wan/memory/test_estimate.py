"""The arithmetic of memory against tensors that are really there, and against published sizes."""

import gc
import weakref

import pytest
import torch
from torch import Tensor

from networks.lora_wan import create_network
from tests.tiny_dit import tiny_dit, tiny_inputs, tiny_variant
from tests.wan.memory.late_transfers import LateTransfers
from wan.memory.estimate import Holding, block_bytes, memory_need, rest_bytes
from wan.memory.fp8 import Fp8Linear, Fp8Settings
from wan.memory.fp8_model import use_fp8_linears
from wan.memory.offload import ActivationOffload
from wan.memory.recompute import RunBlock, recompute_blocks, wrap
from wan.memory.swap import BlockSwap
from wan.modules.dit import WanDiT
from wan.variants import Variant

FP8: dict[str, Fp8Settings | None] = {
    "none": None, "block": Fp8Settings(), "channel": Fp8Settings("channel"), "tensor": Fp8Settings("tensor")}
T2V_14B = Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=16, out_channels=16, text_dim=4096)
TOKENS = 2 * 3 * 2 * 3
"""Of `tiny_inputs`."""


def _dit(fp8: Fp8Settings | None, dtype: torch.dtype) -> WanDiT:
    dit = tiny_dit(tiny_variant(dim=64, ffn_dim=80), dtype=dtype)  # 80 columns are no whole blocks of 64
    if fp8 is not None:
        state = dit.state_dict()
        for name in use_fp8_linears(dit, fp8):
            layer = dit.get_submodule(name)
            assert isinstance(layer, Fp8Linear)
            layer.store(state[f"{name}.weight"])
            layer.bias = torch.nn.Parameter(state[f"{name}.bias"], requires_grad=False)
    return dit


def _bytes_of(dit: WanDiT) -> int:
    return sum(one.nbytes for one in [*dit.parameters(), *dit.buffers()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fp8", FP8)
def test_weights_ring_and_host_memory_are_exact(fp8: str, dtype: torch.dtype) -> None:
    dit = _dit(FP8[fp8], dtype)
    assert memory_need(dit.variant, Holding(dtype, FP8[fp8])).weights == _bytes_of(dit)
    for count, ring in ((1, 2), (3, 2), (4, 3)):
        dit = _dit(FP8[fp8], dtype)
        swap = BlockSwap(dit, count, ring=ring)
        need = memory_need(dit.variant, Holding(dtype, FP8[fp8], swapped=count, ring=ring))
        rest = [one for i, block in enumerate(dit.blocks) if i not in swap.blocks
                for one in [*block.parameters(), *block.buffers()]]
        rest += [one for name, one in dit.named_parameters() if not name.startswith("blocks.")]
        assert (need.weights, need.ring, need.host) == (sum(one.nbytes for one in rest), swap.ring_bytes,
                                                        swap.host_bytes)


def test_kept_inputs_are_one_tensor_a_block() -> None:
    dit, received = tiny_dit(), []

    def watched(run_block: RunBlock, i: int, tokens: Tensor, inputs: object) -> Tensor:
        received.append(weakref.ref(tokens))
        return run_block(i, tokens, inputs)

    wrap(dit, watched)
    recompute_blocks(dit)
    create_network(dit, dim=3, alpha=3).attach().train()
    velocity = dit(*tiny_inputs())
    gc.collect()
    alive = [one() for one in received]
    need = memory_need(dit.variant, Holding(torch.float32), tokens=TOKENS)
    assert need.kept == sum(one.nbytes for one in alive if one is not None) == 4 * TOKENS * 32 * 4
    assert need.host_kept == 0
    assert velocity.requires_grad


def test_offloaded_inputs_are_what_is_copied_out() -> None:
    dit, transfers = tiny_dit(), LateTransfers()
    ActivationOffload(dit, transfers=transfers)
    create_network(dit, dim=3, alpha=3).attach().train()
    dit(*tiny_inputs())
    need = memory_need(dit.variant, Holding(torch.float32, offloads=True), tokens=TOKENS)
    assert need.host_kept == transfers.copied == 3 * TOKENS * 32 * 4
    assert need.kept == 2 * TOKENS * 32 * 4


@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_offloaded_attention_is_what_is_copied_out_beside_the_inputs(blocks: int) -> None:
    dit, transfers = tiny_dit(), LateTransfers()
    ActivationOffload(dit, attention=range(blocks), transfers=transfers)
    create_network(dit, dim=3, alpha=3).attach().train()
    dit(*tiny_inputs())
    need = memory_need(dit.variant, Holding(torch.float32, offloads=True, attention=blocks), tokens=TOKENS)
    seen = TOKENS * (32 + 2) * 4  # a token's channels, and a number for each head
    assert need.host_kept == transfers.copied == 3 * TOKENS * 32 * 4 + min(blocks, 3) * seen
    assert need.kept == 2 * TOKENS * 32 * 4 + min(blocks, 2) * seen


def test_published_sizes_of_14b() -> None:
    """Parameters of the released model: 351.4 M a block, 14.288 G in all (shared/reference/performance.md, 1.1)."""
    block, _ = block_bytes(T2V_14B, Holding())
    assert block / 2 == pytest.approx(351.4e6, rel=1e-3)
    assert (rest_bytes(T2V_14B, torch.bfloat16) + 40 * block) / 2 == pytest.approx(14.288e9, rel=1e-4)
    inputs = memory_need(T2V_14B, Holding(), tokens=32760).kept
    assert inputs / 2**30 == pytest.approx(12.5, abs=0.01)  # 1.6: full checkpointing at 480x832x81


def test_the_line_names_what_is_there() -> None:
    line = memory_need(T2V_14B, Holding(fp8=Fp8Settings(), swapped=36, offloads=True), tokens=32760).words
    assert line.startswith("weights ") and "ring" in line and "page-locked host memory" in line
    assert "ring" not in memory_need(T2V_14B, Holding()).words
