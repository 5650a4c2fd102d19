"""The planner's bytes against what was measured, and its choices."""

import pytest
import torch

from networks.lora_wan import create_network
from tests.tiny_dit import tiny_dit, tiny_variant
from training.estimating.live_bytes import LiveBytes
from wan.memory.blocks import run_blocks
from wan.memory.planner import Step, as_text, choose
from wan.memory.policies import Policy, parse_policies
from wan.variants import Variant

GIB = 2**30
LARGE = Variant(dim=5120, ffn_dim=13824, layers=40, heads=40, in_channels=16, out_channels=16, text_dim=4096)
SMALL = Variant(dim=1536, ffn_dim=8960, layers=30, heads=12, in_channels=16, out_channels=16, text_dim=4096)


@pytest.mark.parametrize(("variant", "tokens", "policy", "measured"), [
    (LARGE, 32760, "attention", 33.2), (LARGE, 6300, "none", 50.6), (SMALL, 32760, "none", 76.6)])
def test_bytes_are_those_that_an_h200_measured(variant: Variant, tokens: int, policy: Policy, measured: float) -> None:
    """Peak less what stays: 49.1, 66.5 and 79.9 GiB allocated (benchmarks/results), compiled."""
    step = Step(variant, tokens, compiled=True)
    assert step.activations([policy] * variant.layers) / GIB == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("has_image", "own_times"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("policy", ["none", "matmuls", "attention", "full"])
def test_bytes_are_those_that_an_uncompiled_block_really_keeps(policy: Policy, has_image: bool, own_times: bool,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """With LoRA on every linear, and norms as on a GPU."""
    monkeypatch.setattr("wan.modules.rows.lies_on_gpu", lambda x: True)
    monkeypatch.setattr("wan.modules.rows.NARROWEST", 1)
    image = {"in_channels": 36, "has_image_branch": True, "image_dim": 16} if has_image else {}
    variant = tiny_variant(dim=256, ffn_dim=512, layers=2, text_length=16, **image)
    dit = tiny_dit(variant, dtype=torch.bfloat16)
    network = create_network(dit, dim=4, alpha=4)
    network.attach().train()
    run_blocks(dit, parse_policies(policy, 2), has_dropout=False)
    latents = torch.randn(1, 16, 2, 2 * 40, 2 * 40)
    given = {"channels": torch.randn(1, 20, 2, 80, 80), "clip_features": torch.randn(1, 257, 16)} if has_image else {}
    times = torch.full((1, 2 * 40 * 40) if own_times else (1,), 500.0)
    tokens, inputs = dit.embed(latents, times, [torch.randn(5, 12)], **given)
    step = Step(variant, tokens.shape[1], compiled=False, own_times=own_times)
    table = inputs.modulation[0].table.nbytes if own_times else 0
    assert step.activations(["none"] * 2) == round(2 * step.kept("none") + 2 * step.unit + table)
    owned = sum(p.nbytes for p in dit.blocks[1].parameters())
    first = tokens.detach().contiguous().requires_grad_()
    with LiveBytes() as counter:
        middle = dit.run_block(0, first, inputs)
        before = counter.live
        last = dit.run_block(1, middle, inputs)
        kept = counter.live - before - owned  # the counter meets a block's weights when it is first run
    assert last.requires_grad
    # Keys and values, and beside them those of LoRA, or the keys' norm.
    of_image = 257 / step.tokens * 4 * step.unit if has_image and policy in ("none", "matmuls") else 0
    assert kept == pytest.approx(step.kept(policy) + of_image, rel=0.05)


def test_an_uncompiled_mix_has_no_policy_that_keeps_more_than_all() -> None:
    step = Step(LARGE, 32760, compiled=False)
    mixes = [mix for room in range(20, 300, 5) if (mix := choose(step, room * GIB)) is not None]
    assert {policy for mix in mixes for policy in mix} == {"none", "attention", "full"}
    assert any(set(mix) == {"none", "attention"} for mix in mixes)


def test_more_room_never_gives_a_slower_mix() -> None:
    step, order = Step(LARGE, 32760, compiled=True), ["full", "attention", "matmuls", "none"]
    ranks = []
    for room in range(20, 300, 5):
        mix = choose(step, room * GIB)
        assert mix is None or (step.activations(mix) <= room * GIB and len(mix) == 40)
        ranks.append(-1 if mix is None else sum(order.index(policy) for policy in mix))
    assert ranks == sorted(ranks) and ranks[0] == -1 and ranks[-1] == 120


def test_what_is_chosen_reads_as_what_is_given_by_hand() -> None:
    step = Step(LARGE, 32760, compiled=True)
    mix = choose(step, 80 * GIB)
    assert mix is not None and set(mix) == {"matmuls", "attention"}
    assert parse_policies(as_text(mix), 40) == mix
