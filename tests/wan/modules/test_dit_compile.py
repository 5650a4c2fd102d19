"""The DiT compiles as one graph, with and without conditions, and computes the same."""

import pytest
import torch

from tests.tiny_dit import tiny_dit, tiny_features, tiny_inputs
from wan.conditions.base import ConditionState
from wan.conditions.registry import build_condition
from wan.modules.dit import WanDiT

SETTINGS = {"audio_states": "3", "audio_width": "4", "audio_hidden": "8"}


def _audio(dit: WanDiT) -> dict[str, ConditionState]:
    torch.manual_seed(5)
    condition = build_condition("omniavatar_add", SETTINGS, dit.variant).requires_grad_(False)
    for parameter in condition.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return {condition.name: condition.prepare(tiny_features(), (3, 2, 3))}


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Nothing compiled before. Shape checks at run time (`--jaxtyping-packages`) cannot be compiled themselves."""
    if hasattr(WanDiT.forward, "__wrapped__"):
        pytest.skip("run without --jaxtyping-packages")
    torch._dynamo.reset()


@pytest.mark.parametrize("with_condition", [False, True])
def test_one_graph_without_a_break(with_condition: bool) -> None:
    dit = tiny_dit()
    conditions = _audio(dit) if with_condition else None
    explanation = torch._dynamo.explain(dit)(*tiny_inputs(), conditions=conditions)
    assert (explanation.graph_count, explanation.graph_break_count) == (1, 0), explanation.break_reasons


@pytest.mark.slow
@pytest.mark.parametrize("with_condition", [False, True])
def test_compiled_output_equals_the_eager_one(with_condition: bool) -> None:
    dit, inputs = tiny_dit(), tiny_inputs()
    conditions = _audio(dit) if with_condition else None
    compiled = torch.compile(dit, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, conditions=conditions), dit(*inputs, conditions=conditions),
                               atol=2e-6, rtol=1e-5)


def test_compiling_each_block_makes_one_graph_for_all_of_them() -> None:
    from torch._dynamo.utils import counters
    dit, inputs = tiny_dit(), tiny_inputs()
    reference = dit(*inputs)
    counters.clear()
    for block in dit.blocks:
        block.compile(fullgraph=True, backend="eager")
    torch.testing.assert_close(dit(*inputs), reference, atol=2e-6, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
