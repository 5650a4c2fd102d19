"""Blocks that run compiled or by a policy give the numbers of plain ones, and keep what the policy says."""

from typing import Any

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError
from networks.lora import LoraNetwork
from networks.lora_wan import create_network
from tests.tiny_dit import tiny_dit, tiny_inputs, tiny_variant
from training.estimating.live_bytes import LiveBytes
from wan.memory.blocks import BlockRunner, run_blocks, stop_running_blocks
from wan.memory.policies import POLICIES, SHORT_KEYS, parse_policies
from wan.modules.dit import WanDiT
from wan.modules.hooks import Forward, Hooks


class Everywhere(Hooks):
    """Acts before, in the middle of and behind every block, with a trained weight."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def before_block(self, i: int, tokens: Tensor, forward: Forward) -> Tensor:
        return tokens + self.weight

    def after_cross_attention(self, i: int, tokens: Tensor, forward: Forward) -> Tensor:
        return tokens + (tokens * self.weight).sin()

    def after_block(self, i: int, tokens: Tensor, forward: Forward) -> Tensor:
        return tokens + (tokens * self.weight).cos()


class Inside(Hooks):
    """Adds to the text attention."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def cross_attention(self, i: int, query: Tensor, forward: Forward) -> Tensor:
        return query * self.weight.mean()


def trained(dit: WanDiT, dropout: float = 0.0) -> LoraNetwork:
    network = create_network(dit, dim=4, alpha=4, dropout=dropout)
    for parameter in network.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    network.attach().train()
    return network


def gradients(dit: WanDiT, network: LoraNetwork, hooks: type[Any] | None = None) -> list[Tensor]:
    weight = torch.full((32,), 0.1, requires_grad=True)
    conditions = {} if hooks is None else {"hooks": hooks(weight)}
    torch.manual_seed(3)
    loss = dit(*tiny_inputs(), conditions=conditions).square().mean()
    wanted = [p for p in network.parameters() if p.requires_grad] + ([weight] if hooks else [])
    return [loss.detach(), *torch.autograd.grad(loss, wanted)]


@pytest.mark.parametrize("hooks", [None, Everywhere, Inside])
@pytest.mark.parametrize("policies", [*POLICIES, "matmuls:1,attention:2,full"])
def test_every_policy_gives_the_same_gradients(policies: str, hooks: type[Any] | None) -> None:
    dit = tiny_dit()
    network = trained(dit, dropout=0.2)
    plain = gradients(dit, network, hooks)
    run_blocks(dit, parse_policies(policies, 4))
    assert all(map(torch.equal, plain, gradients(dit, network, hooks)))
    stop_running_blocks(dit)
    assert "run_block" not in vars(dit)


@pytest.mark.parametrize("hooks", [None, Everywhere, Inside])
def test_compiled_blocks_give_the_same_gradients_without_a_break(hooks: type[Any] | None) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    dit = tiny_dit()
    network = trained(dit)
    plain = gradients(dit, network, hooks)
    run_blocks(dit, ["none", "matmuls", "attention", "full"], compiled=True, backend="aot_eager", has_dropout=False)
    for _ in range(2):
        for one, other in zip(plain, gradients(dit, network, hooks), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_each_pass_is_told_to_recorded_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    told: list[int] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: told.append(1))
    dit = tiny_dit()
    network = trained(dit)
    plain = gradients(dit, network)
    run_blocks(dit, ["none"] * 4, compiled=True, backend="eager", mode="reduce-overhead", has_dropout=False)
    assert all(map(torch.equal, plain, gradients(dit, network))) and told == [1]
    run_blocks(dit, ["none"] * 4, compiled=True, backend="eager", has_dropout=False)
    gradients(dit, network)
    assert told == [1], "graphs are not recorded"
    stop_running_blocks(dit)
    assert "embed" not in vars(dit)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("policy", ["none", "attention", "full"])
def test_recorded_graphs_give_the_gradients_of_unrecorded_ones(policy: Any) -> None:
    found = {}
    for mode in (None, "reduce-overhead"):
        torch._dynamo.reset()
        dit = tiny_dit().cuda()
        network = trained(dit).cuda()
        run_blocks(dit, [policy] * 4, compiled=True, mode=mode, has_dropout=False)
        found[mode] = []
        for strength in (1.0, 0.5, 2.0, 0.1):  # computed, recorded, and replayed twice
            latents, timestep, text = tiny_inputs()
            rest = timestep.cuda(), [one.cuda() for one in text]
            loss = dit(latents.cuda() * strength, *rest).square().mean()
            wanted = [one for one in network.parameters() if one.requires_grad]
            found[mode] += [loss.detach().clone(), *(one.clone() for one in torch.autograd.grad(loss, wanted))]
            with torch.no_grad():  # between two steps, as previews do
                found[mode].append(dit(latents.cuda(), *rest).clone())
    for one, other in zip(found["reduce-overhead"], found[None], strict=True):
        # Two unrecorded runs differ by up to 8e-5 of the largest number: some sums have no fixed order there.
        torch.testing.assert_close(one, other, rtol=0, atol=5e-4 * float(other.abs().max()))


def test_blocks_share_a_graph_and_the_second_step_makes_none() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    dit = tiny_dit(tiny_variant(layers=6))
    network = trained(dit)
    run_blocks(dit, ["none"] * 6, compiled=True, backend="aot_eager", has_dropout=False)
    gradients(dit, network)
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert made <= 2, "one for the first block, whose tokens want no gradient, and one for the others"
    gradients(dit, network)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made


def kept_bytes(policy: str, length: int = SHORT_KEYS + 200) -> float:
    """Bytes a token and channel that a block keeps beside its weights."""
    variant = tiny_variant(dim=32, ffn_dim=64, layers=1)
    dit = tiny_dit(variant)
    network = trained(dit)
    run_blocks(dit, parse_policies(policy, 1))
    latents = torch.randn(1, 16, 1, 2 * 24, 2 * (length // 24))
    tokens, inputs = dit.embed(latents, torch.tensor([500.0]), [torch.randn(5, 12)])
    tokens.requires_grad_()
    owned = {parameter.untyped_storage().data_ptr() for parameter in [*dit.parameters(), *network.parameters()]}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = dit.run_block(0, tokens, inputs)
    assert result.requires_grad
    return sum(seen.values()) / tokens.numel()


def test_full_keeps_the_input_alone_and_none_keeps_much_more() -> None:
    """float32 here: twice the bytes of bfloat16."""
    full, none = kept_bytes("full"), kept_bytes("none")
    assert full <= 2 * 2.0 + 1.0 and none > 10 * full


def test_policies_are_read_from_text() -> None:
    assert parse_policies("matmuls:1,attention", 3) == ["matmuls", "attention", "attention"]
    assert parse_policies("full", 2) == ["full", "full"]
    for text, message in (("fulll", "nearest: 'full'"), ("matmuls:x,full", "'x' is no number"),
                          ("matmuls,full", "needs a number of blocks"), ("matmuls:9,full", "names 9 blocks"),
                          ("none:1", "names 1 blocks; the model has 3")):
        with pytest.raises(ConfigError, match=message):
            parse_policies(text, 3)


def broken(graph: Any, inputs: Any) -> Any:
    """A back end that compiles nothing."""
    raise RuntimeError("no compiler here")


def alive_after_a_forward(dit: WanDiT, **more: Any) -> int:
    """Bytes that the blocks keep for the backward pass, and the result."""
    inputs = tiny_inputs(frames=5)
    with LiveBytes() as counter:
        result = dit(*inputs, **more)
        assert result.requires_grad
        return counter.live


def test_a_block_that_falls_back_keeps_no_more_than_it_was_to_keep_compiled() -> None:
    torch._dynamo.reset()
    dit = tiny_dit(dtype=torch.bfloat16)
    network = trained(dit)
    kept = {}
    for policy in ("attention", "matmuls"):
        run_blocks(dit, [policy] * 4, has_dropout=False)
        kept[policy] = alive_after_a_forward(dit)
    run_blocks(dit, ["matmuls"] * 4, compiled=True, has_dropout=False, backend=broken)  # type: ignore[arg-type]
    gradients(dit, network)
    assert alive_after_a_forward(dit) == kept["attention"] < kept["matmuls"]


def test_a_block_with_a_condition_inside_keeps_no_more_than_it_was_to_keep_compiled() -> None:
    dit = tiny_dit(dtype=torch.bfloat16)
    trained(dit)
    kept = {}
    for policy, compiled in (("attention", False), ("matmuls", False), ("matmuls", True)):
        run_blocks(dit, [policy] * 4, compiled=compiled, has_dropout=False)  # type: ignore[list-item]
        kept[policy, compiled] = alive_after_a_forward(dit, conditions={"hooks": Inside(torch.ones(32))})
    assert kept["matmuls", True] == kept["attention", False] < kept["matmuls", False]


def test_a_block_that_cannot_be_compiled_runs_as_it_is_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    torch._dynamo.reset()
    dit = tiny_dit()
    network = trained(dit)
    plain = gradients(dit, network)
    runner: BlockRunner = run_blocks(dit, ["none", "matmuls", "attention", "full"], compiled=True, has_dropout=False,
                                     backend=broken)  # type: ignore[arg-type]
    assert runner.is_compiled
    assert all(map(torch.equal, plain, gradients(dit, network)))
    assert "cannot be compiled and runs uncompiled" in caplog.text
