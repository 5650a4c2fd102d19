"""Memory of a step: counted by hand, against real tensors, and whole against extrapolated."""

from dataclasses import replace
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common.features import FeatureBatch
from common.timebase import video_frame_count
from training.estimating.estimate import fitting_tokens
from training.estimating.flops import flops
from training.estimating.live_bytes import BLOCK, LiveBytes, counted_fakes
from training.estimating.memory_estimate import estimate_memory, savings, state_bytes_per_number
from training.estimating.step_time import measure
from training.estimating.trial import Portions, Recipe, StepInputs, Trial, empty_dit, portions
from wan.conditions.given_frames import with_first_frame_given
from wan.memory.fp8 import Fp8Settings
from wan.variants import Variant

TINY = Variant(dim=128, ffn_dim=256, layers=4, heads=2, in_channels=16, out_channels=16, text_dim=64)
FRAMES, SIDE = 3, 16
"""Latent frames, and height and width."""
PLAIN = Recipe(TINY, torch.float32, is_gpu=False, network_dim=4, network_alpha=4)
HEARING = replace(PLAIN, conditions=(("omniavatar_add", (("audio_states", "3"), ("audio_width", "32"))),))


def batch(side: int = SIDE, samples: int = 1) -> StepInputs:
    """A clip with all that omniavatar_add reads."""
    frames, source = video_frame_count(FRAMES), torch.Generator().manual_seed(0)
    latents = torch.randn(samples, 16, FRAMES, side, side, generator=source)
    features = FeatureBatch(
        features={"text": {"hidden": [torch.randn(5, TINY.text_dim, generator=source)] * samples},
                  "audio": {"states": torch.randn(samples, frames, 3, 32, generator=source)},
                  "reference_latents": {"latents": latents[:, :, :1]}}, frames=frames, fps=25.0)
    return StepInputs(latents, with_first_frame_given(features, latents[:, :, :1], FRAMES,
                                                      torch.ones(samples, dtype=torch.bool)))


def in_blocks(tensors: list[Tensor]) -> int:
    return sum(math.ceil(one.numel() * one.element_size() / BLOCK) * BLOCK for one in tensors)


def test_bytes_are_counted_while_they_live_and_no_longer() -> None:
    with LiveBytes() as counter:
        first = torch.zeros(1024)  # 4096 bytes
        view = first[:10]
        other = first + 1
        assert counter.live == counter.peak == 8192
        del other
        first.add_(1)
        assert (counter.live, counter.peak) == (4096, 8192)
        del first
        assert counter.live == 4096, "the view holds the storage"
        del view
        assert counter.live == 0
        one = torch.zeros(1)
        assert counter.live == BLOCK == one.untyped_storage().nbytes() + BLOCK - 4


def test_what_stays_is_what_a_hand_counts() -> None:
    dit = empty_dit(PLAIN)
    memory = estimate_memory(PLAIN, batch())
    assert memory.base == in_blocks([*dit.parameters()])
    rank, d, f = 4, TINY.dim, TINY.ffn_dim
    down_and_up = [*[(rank, d), (d, rank)] * 9, (rank, d), (f, rank), (rank, f), (d, rank)]  # q k v o twice, ffn.0, .2
    down_and_up = down_and_up[2:]
    numbers = TINY.layers * sum(a * b for a, b in down_and_up)
    assert memory.saved.numbers == numbers
    assert memory.saved.alphas == TINY.layers * 10
    assert memory.network == numbers * 4 + memory.saved.alphas * BLOCK
    assert memory.gradients == math.ceil((numbers + 2) * 4 / BLOCK) * BLOCK
    counters = TINY.layers * 20 * BLOCK  # AdamW's step of every tensor
    assert memory.optimizer == numbers * 8 + counters
    averaged = estimate_memory(replace(PLAIN, has_average=True), batch())
    assert (averaged.average, averaged.tensors) == (numbers * 4, memory.tensors + numbers * 4)


@pytest.mark.parametrize("recipe", [
    PLAIN, replace(HEARING, activations="full", is_gpu=True),
    replace(HEARING, fp8=Fp8Settings(), dtype=torch.bfloat16, is_gpu=True)],
    ids=["plain", "hearing, checkpointing, GPU", "hearing, fp8, GPU"])
def test_adding_up_blocks_gives_the_whole_model(recipe: Recipe) -> None:
    whole, added = (estimate_memory(recipe, batch(), extrapolate=is_added) for is_added in (False, True))
    assert replace(added, portions=whole.portions) == whole
    assert len(added.portions.blocks) < 4 == len(whole.portions.blocks)


def test_frames_given_at_timestep_0_cost_the_table_of_their_times() -> None:
    ((name, told),) = HEARING.conditions
    plain = replace(HEARING, is_gpu=True, compiled=True, dtype=torch.bfloat16)
    timed = replace(plain, conditions=((name, (*told, ("given", "t0"))),))
    table = FRAMES * (SIDE // 2)**2 * 6 * TINY.dim * 4
    assert estimate_memory(timed, batch()).activations - estimate_memory(plain, batch()).activations == table


@pytest.mark.parametrize("recipe", [PLAIN, replace(HEARING, activations="full"),
                                    replace(HEARING, dtype=torch.bfloat16, fp8=Fp8Settings())])
def test_real_tensors_take_what_was_estimated(recipe: Recipe) -> None:
    estimated = estimate_memory(recipe, batch())
    source = torch.Generator().manual_seed(1)

    def make(name: str, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return (torch.randn(shape, generator=source) * 0.02).to(dtype)

    dit, every = empty_dit(recipe), range(TINY.layers)
    with LiveBytes() as counter:
        trial = Trial(recipe, make, dit=dit)
        inputs = batch()
        trial.make_optimizer()
        assert trial.optimizer is not None
        for _ in range(2):
            trial.bucket.clear()
            counter.reset_peak()
            trial.forward_backward(inputs, every)
            trial.bucket.reduce(1.0)
            trial.optimizer.step()
    assert counter.peak == pytest.approx(estimated.tensors, rel=0.02)


def test_options_save_what_they_promise() -> None:
    shallow = replace(TINY, layers=2)
    recipe, large = replace(PLAIN, variant=shallow, dtype=torch.bfloat16, is_gpu=True), batch(side=32)
    plain = estimate_memory(recipe, large)
    told = {one.option: one.memory for one in savings(recipe, large)}
    checkpointed, in_fp8, small_state, all_of_it = told.values()
    assert [*told] == ["--gradient_checkpointing", "--fp8_base", "--optimizer_type adamw8bit",
                       "--gradient_checkpointing --fp8_base --optimizer_type adamw8bit"]
    assert checkpointed is not None and checkpointed.activations < 0.8 * plain.activations
    assert in_fp8 is not None and in_fp8.base < 0.8 * plain.base
    assert small_state is not None and small_state.optimizer < plain.optimizer
    assert all_of_it is not None and all_of_it.reserved < min(
        one.reserved for one in (checkpointed, in_fp8, small_state))


def test_what_waits_in_host_memory_is_not_on_the_device() -> None:
    """Four blocks through a ring of two free two blocks; of four inputs two stay: 3 x 8 x 8 tokens, 128 wide."""
    recipe = replace(PLAIN, activations="full")
    plain = estimate_memory(recipe, batch())
    small = estimate_memory(replace(recipe, swapped=4, offloads=True), batch())
    block = sum(tensor.nbytes for tensor in empty_dit(PLAIN).blocks[0].parameters())
    assert plain.base - small.base == pytest.approx(2 * block, rel=0.01)  # each tensor lies at a multiple of 256 bytes
    assert plain.activations - small.activations == 2 * 3 * 8 * 8 * 128 * 4
    seen = estimate_memory(replace(recipe, swapped=4, offloads=True, offloaded_attention=4), batch())
    assert seen.activations - small.activations == 3 * 8 * 8 * (128 + TINY.heads) * 4, "of the block before"
    options = [one.option for one in savings(recipe, batch())]
    assert "--gradient_checkpointing_cpu_offload" in options and "--blocks_to_swap 4" in options


def test_a_gpu_keeps_no_scores_unless_it_is_told_to() -> None:
    kept, shallow = {}, replace(TINY, layers=1)
    for attention in ("sdpa", "math"):
        for side in (16, 32):  # 192 and 768 tokens
            recipe = replace(PLAIN, is_gpu=True, attention=attention, dtype=torch.bfloat16, variant=shallow)
            kept[attention, side] = estimate_memory(recipe, batch(side)).activations
    assert kept["sdpa", 32] < 4.0 * kept["sdpa", 16], "in proportion to tokens, and text beside them"
    scores = TINY.heads * 2 * (768**2 - 192**2)  # the probabilities in bfloat16,
    assert kept["math", 32] - kept["math", 16] > kept["sdpa", 32] - kept["sdpa", 16] + scores


def test_the_tokens_that_would_fit_do_fit() -> None:
    recipe = replace(PLAIN, is_gpu=True, dtype=torch.bfloat16, variant=replace(TINY, layers=1))
    small, middle, large = (estimate_memory(recipe, batch(side)).reserved for side in (16, 24, 32))
    # From 768 and 192 tokens, the room that 432 tokens need.
    assert fitting_tokens((768, large), (192, small), middle) == pytest.approx(432, abs=4)


def test_the_state_of_an_8_bit_optimiser_is_measured() -> None:
    pytest.importorskip("bitsandbytes")
    recipe = replace(PLAIN, optimizer_type="adamw8bit")
    assert state_bytes_per_number(recipe, 2**16) == pytest.approx(2 * (1 + 4 / 256 + 1024 / 2**16))
    deep = replace(recipe, network_dim=32)  # tensors below 4096 numbers stay in 32 bits
    memory = estimate_memory(deep, batch())
    assert "bytes a number" in memory.optimizer_note
    assert 2 < memory.optimizer / memory.saved.numbers < 3


def test_an_optimiser_that_asks_for_numbers_still_has_its_state() -> None:
    memory = estimate_memory(replace(PLAIN, optimizer_type="Prodigy", learning_rate=1.0), batch())
    assert 12 <= memory.optimizer / memory.saved.numbers < 24  # two moments, s and p0


def test_an_estimate_leaves_no_trace() -> None:
    before, attention, norm = torch.get_rng_state(), F.scaled_dot_product_attention, F.rms_norm
    with pytest.raises(ZeroDivisionError), counted_fakes(is_gpu=True):
        torch.randn(3)
        raise ZeroDivisionError
    estimate_memory(replace(HEARING, is_gpu=True), batch())
    assert torch.equal(torch.get_rng_state(), before)
    assert (F.scaled_dot_product_attention, F.rms_norm) == (attention, norm)


def test_portions_stand_for_all_blocks() -> None:
    assert portions(["a"]) == Portions((0,))
    few = portions(["a", "a", "b", "a", "b", "a"])
    assert few == Portions((4, 5), ((0, 3), (2, 1)))
    weights = [1, 1, 10, 1, 10, 1]
    assert few.total(lambda blocks: 5 + sum(weights[i] for i in blocks)) == 5 + sum(weights)


@pytest.mark.parametrize(("activations", "outside", "looked_at"), [
    ("full", 0, {0: 3}), ("attention:1,full", 0, {0: 1, 1: 2}), ("matmuls:2,attention", 0, {0: 2, 2: 1}),
    ("full", 2, {0: 2, 2: 1}),  # two of which what attention gave lies in host memory
])
def test_blocks_of_each_policy_are_looked_at(activations: str, outside: int, looked_at: dict[int, int]) -> None:
    five = replace(PLAIN, variant=replace(TINY, layers=5), activations=activations, offloads=outside > 0,
                   offloaded_attention=outside)
    assert estimate_memory(five, batch()).portions == Portions((3, 4), tuple(looked_at.items()))


class Attentions(TorchDispatchMode):
    """Counts those that are computed."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
        return func(*args, **(kwargs or {}))


def test_attention_that_waits_in_host_memory_is_not_timed_twice() -> None:
    """Nothing waits there while the few blocks are timed; as much is computed."""
    def computed(outside: int) -> int:
        recipe = replace(PLAIN, activations="full", offloads=outside > 0, offloaded_attention=outside)
        with Attentions() as attentions:
            assert measure(recipe, Portions((0, 1)), batch(side=40), torch.device("cpu")) is not None
        return attentions.number

    every, one, none = computed(0), computed(1), computed(4)
    assert every - one == one - none > 0


def test_operations_are_those_of_the_published_table() -> None:
    # performance figures of Wan2.1 14B at 480x832x81: forward 1678.4 TF, LoRA step 4694 and 6372 with checkpointing.
    big = Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=16, out_channels=16, text_dim=4096)
    work = flops(big, 32760)
    assert work.forward / 1e12 == pytest.approx(1678.4, rel=2e-3)
    assert work.step(False) / 1e12 == pytest.approx(4694, rel=2e-3)
    assert work.step(True) / 1e12 == pytest.approx(6372, rel=2e-3)
