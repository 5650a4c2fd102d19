"""Products' inputs that are written in eight bits at once: the pass over compiled graphs, which changes no bit here."""

from collections import Counter
from collections.abc import Callable, Iterator
from operator import getitem
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch.fx import Graph, GraphModule

from common.operators import NAMESPACE
from tests.tiny_dit import tiny_dit, tiny_inputs
from tests.wan.memory.test_blocks import gradients, trained
from tests.wan.memory.test_fp8_compute import fp8_dit
from wan.memory import fp8_fusion, fp8_rows
from wan.memory.blocks import run_blocks
from wan.memory.fp8_fusion import EightBitRows
from wan.memory.fp8_rows import (
    gelu_and_eight_bits,
    gelu_to_eight_bits,
    norm_and_eight_bits,
    norm_to_eight_bits,
    quantise_rows,
)
from wan.modules import rows
from wan.modules.block import CUBIC, TWO_SQRT_2_BY_PI, gelu_by_sigmoid
from wan.modules.rows import layer_norm_rows

EPS = 1e-6


@pytest.fixture(autouse=True)
def by_rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Norms of the model take the operators on the CPU too, whatever their width."""
    monkeypatch.setattr(rows, "lies_on_gpu", lambda x: True)
    monkeypatch.setattr(rows, "NARROWEST", 1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Noted:
    """A compiler that keeps what torch traced as it is, but for the pass, and counts our operators before and after."""

    def __init__(self, passes: Callable[[Any], Any]) -> None:
        self.counts: list[tuple[Counter[str], Counter[str]]] = []
        self._passes = passes
        self.backend = aot_autograd(fw_compiler=self._compile, bw_compiler=self._compile,
                                    partition_fn=min_cut_rematerialization_partition,
                                    decompositions=select_decomp_table)

    def _compile(self, module: GraphModule, _: Any) -> Any:
        before = ours(module)
        self._passes(module.graph)
        module.graph.lint()
        module.recompile()
        self.counts.append((before, ours(module)))
        return module


def ours(module: GraphModule) -> Counter[str]:
    names = [str(node.target).split(".") for node in module.graph.nodes if node.op == "call_function"]
    return Counter(name[1] for name in names if name[0] == NAMESPACE)


def generated(passes: Callable[[Any], Any]) -> tuple[Tensor, Noted]:
    noted, dit = Noted(passes), fp8_dit()
    run_blocks(dit, ["none"] * len(dit.blocks), compiled=True, has_dropout=False, backend=noted.backend)
    with torch.no_grad():
        return dit(*tiny_inputs()), noted


def test_in_generation_every_row_is_scaled_by_what_makes_it_and_once() -> None:
    plain, _ = generated(lambda graph: None)
    joined, noted = generated(EightBitRows())
    assert torch.equal(plain, joined)
    [(before, after)] = noted.counts
    assert before["quantise_rows"] == 8 and before["layer_norm_rows"] == 3
    assert after == {"norm_to_eight_bits": 3, "gelu_to_eight_bits": 1, "quantise_rows": 2, "fp8_product": 8,
                     "rms_norm_rows": 4}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["none", "full"])
def test_in_training_the_rows_are_written_too_and_gradients_stay(policy: Any) -> None:
    found = []
    for passes in (lambda graph: None, EightBitRows()):
        torch.manual_seed(0)
        noted, dit = Noted(passes), fp8_dit()
        network = trained(dit)
        run_blocks(dit, [policy] * len(dit.blocks), compiled=True, has_dropout=False, backend=noted.backend)
        found.append(gradients(dit, network))
        torch._dynamo.reset()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    after = [pair[1] for pair in noted.counts]
    assert any(one["layer_norm_rows_backward"] for one in after), "a graph backward"
    forward = [one for one in after if "layer_norm_rows_backward" not in one]
    assert all(one["norm_and_eight_bits"] == 3 and one["gelu_and_eight_bits"] == 1 for one in forward)
    assert not any(one["layer_norm_rows"] or one["norm_to_eight_bits"] or one["gelu_to_eight_bits"] for one in after)


def passed(work: Callable[..., Any], *inputs: Tensor) -> tuple[Any, Counter[str]]:
    """Results of `work` with the pass, and its operators then; both must be those of `work` alone."""
    noted = Noted(EightBitRows())
    with torch.no_grad():
        found = torch.compile(work, fullgraph=True, dynamic=False, backend=noted.backend)(*inputs)
        plain = Noted(lambda graph: None)
        expected = torch.compile(work, fullgraph=True, dynamic=False, backend=plain.backend)(*inputs)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.float(), other.float())
    return found, noted.counts[0][1]


X = torch.randn(6, 32, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
WEIGHT, SCALE = torch.linspace(0.5, 2, 32)[None], torch.tensor(0.25)


def test_a_factor_is_taken_in_where_it_is_the_only_one() -> None:
    def single(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        values, scales = quantise_rows(x)
        return values, scales * scale

    def several(x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        values, scales = quantise_rows(x)
        return values, scales * scale, scales * (scale + 1)

    def of_itself(x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        values, scales = quantise_rows(x)
        return values, scales * (values.float().amax() * scale)

    def by_row(x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        values, scales = quantise_rows(x)
        return values, scales * scale.expand(6, 1)

    graphs: list[str] = []

    def told(graph: Any) -> None:
        EightBitRows()(graph)
        graphs.append(str([node.args for node in graph.nodes if node.target is quantise_rows]))

    for work in (single, several, of_itself, by_row):
        passed(work, X, SCALE)
        with torch.no_grad():
            torch.compile(work, fullgraph=True, dynamic=False, backend=Noted(told).backend)(X, SCALE)
    assert [text.count(",") for text in graphs] == [1, 1, 1, 1]
    assert graphs[0].endswith("arg1_1)]") and not any("arg1_1" in text for text in graphs[1:])


def test_a_factor_that_is_given_stays() -> None:
    def shared(x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return *quantise_rows(x, scale), *quantise_rows(x, factor=scale + 1), *quantise_rows(x)

    def multiplied(x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        values, scales = quantise_rows(x, scale)
        return values, scales * scale

    def normed(x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return quantise_rows(layer_norm_rows(x, scale.expand(1, 32), None, EPS)[0], scale)

    def active(x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        return quantise_rows(gelu_by_sigmoid(x), scale)

    for work in (shared, multiplied, normed, active):
        passed(work, X, SCALE)


@pytest.mark.parametrize(("scale", "is_taken"), [
    (torch.empty((), device="meta"), True), (torch.empty(()), False), (torch.empty(1, device="meta"), False),
    (torch.empty((), device="meta", dtype=torch.float64), False)], ids=["number", "elsewhere", "list", "double"])
def test_a_factor_is_taken_in_where_a_kernel_can_read_it(scale: Tensor, is_taken: bool) -> None:
    graph = Graph()
    x, factor = graph.placeholder("x"), graph.placeholder("scale")
    written = graph.call_function(quantise_rows, (x,))
    values, scales = (graph.call_function(getitem, (written, i)) for i in range(2))
    product = graph.call_function(torch.ops.aten.mul.Tensor, (scales, factor))
    graph.output((values, product))
    x.meta["val"], factor.meta["val"] = torch.empty(6, 32, device="meta"), scale
    scales.meta["val"] = product.meta["val"] = torch.empty(6, 1, device="meta")
    EightBitRows()(graph)
    assert (written.args == (x, factor)) == is_taken


def test_a_second_model_takes_the_graphs_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks would be compiled anew, a minute and more, if what compiles them were not equal."""
    made: list[GraphModule] = []
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx",
                        lambda module, *_, **more: made.append(module) or module)
    for _ in range(2):
        dit = tiny_dit()
        run_blocks(dit, ["none"] * 4, compiled=True, has_dropout=False)
        with torch.no_grad():
            dit(*tiny_inputs())
    assert len(made) == 1


def test_cached_graphs_are_known_by_the_pass_and_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_fusion, "get_hash_for_files", set)
    assert EightBitRows().uuid() == {fp8_fusion.__file__, fp8_rows.__file__}


def test_what_else_takes_the_rows_gets_them() -> None:
    def both(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        normed, means, deviations = layer_norm_rows(x, weight, None, EPS)
        return *quantise_rows(normed), normed + 1, means, deviations

    def statistics_alone(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        normed, means, _ = layer_norm_rows(x, weight, weight, EPS)
        return *quantise_rows(normed), means

    def other_rows(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return quantise_rows(layer_norm_rows(x, weight, None, EPS)[0].view(12, 16))

    def two_shapes(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        normed = layer_norm_rows(x, weight, None, EPS)[0]
        return *quantise_rows(normed), *quantise_rows(normed.view(12, 16))

    def active_too(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        active = gelu_by_sigmoid(x)
        return *quantise_rows(active), active * 2

    def active_in_the_middle(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        active = gelu_by_sigmoid(x.view(2, 3, 32))
        return *quantise_rows(active.flatten(0, 1)), active.flatten(0, 1) @ x.t(), active + 1, active

    def active_in_two_shapes(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        active = gelu_by_sigmoid(x)
        return *quantise_rows(active.view(12, 16)), *quantise_rows(active), *quantise_rows(active), active.view(3, 64)

    def active_and_changed(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        active = gelu_by_sigmoid(x)
        rows = quantise_rows(active)
        active.add_(1)
        return *rows, active

    def half_of_gelu(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return *quantise_rows(gelu_by_sigmoid(x)), x.float() * 2

    def gelu_in_the_middle(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        return quantise_rows(gelu_by_sigmoid(x.view(2, 3, 32)).flatten(0, 1))

    assert passed(both, X, WEIGHT)[1] == {"norm_and_eight_bits": 1}
    assert passed(statistics_alone, X, WEIGHT)[1] == {"norm_and_eight_bits": 1}
    assert passed(other_rows, X, WEIGHT)[1] == {"layer_norm_rows": 1, "quantise_rows": 1}
    assert passed(two_shapes, X, WEIGHT)[1] == {"norm_and_eight_bits": 1, "quantise_rows": 1}
    assert passed(active_too, X, WEIGHT)[1] == {"gelu_and_eight_bits": 1}
    assert passed(active_in_the_middle, X, WEIGHT)[1] == {"gelu_and_eight_bits": 1}
    assert passed(active_in_two_shapes, X, WEIGHT)[1] == {"gelu_and_eight_bits": 1, "quantise_rows": 1}
    assert passed(active_and_changed, X, WEIGHT)[1] == {"gelu_and_eight_bits": 1}
    assert passed(half_of_gelu, X, WEIGHT)[1] == {"gelu_to_eight_bits": 1}
    assert passed(gelu_in_the_middle, X, WEIGHT)[1] == {"gelu_to_eight_bits": 1}


def almost_gelu(x: Tensor, *, steep: float = TWO_SQRT_2_BY_PI, cubic: float = CUBIC, power: int = 3, alpha: int = 1,
                other: float = 0.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    exact = x.float()
    total = torch.add(exact + other if other else exact, cubic * exact**power, alpha=alpha)
    return (exact * torch.sigmoid(steep * total)).to(dtype)


@pytest.mark.parametrize("change", [{"steep": 1.5}, {"cubic": 0.05}, {"power": 2}, {"alpha": 2}, {"other": 1.0},
                                    {"dtype": torch.float16}, {}], ids=str)
def test_what_is_almost_gelu_is_left(change: dict[str, Any]) -> None:
    name = "quantise_rows" if change else "gelu_to_eight_bits"
    assert passed(lambda x: quantise_rows(almost_gelu(x, **change)), X)[1] == {name: 1}


def test_joined_operators_are_those_apart() -> None:
    for shift in (None, WEIGHT - 3):
        normed = layer_norm_rows(X, WEIGHT, shift, EPS)
        values, scales = quantise_rows(normed[0])
        for norm in (norm_to_eight_bits, norm_and_eight_bits):
            for one, other in zip(norm(X, WEIGHT, shift, EPS, SCALE), (values, scales * SCALE, *normed), strict=False):
                assert torch.equal(one.float(), other.float())
    values, scales = quantise_rows(gelu_by_sigmoid(X), SCALE)
    for active in (gelu_to_eight_bits, gelu_and_eight_bits):
        for one, other in zip(active(X, SCALE), (values, scales, gelu_by_sigmoid(X)), strict=False):
            assert torch.equal(one.float(), other.float())


@pytest.mark.parametrize("x", [X, X.t().contiguous().t()])
def test_joined_operators_are_sound_for_compiling(x: Tensor) -> None:
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for norm in (norm_to_eight_bits, norm_and_eight_bits):
        torch.library.opcheck(norm, (x, WEIGHT, WEIGHT, EPS, SCALE), test_utils=checks)
    for active in (gelu_to_eight_bits, gelu_and_eight_bits):
        torch.library.opcheck(active, (x, None), test_utils=checks)
    torch.library.opcheck(quantise_rows, (x, SCALE), test_utils=checks)


@pytest.mark.slow
def test_inductor_takes_the_pass_and_gives_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[Any]] = []
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
    except torch._dynamo.exc.TorchDynamoException as error:  # no C++ compiler, or torch lies in a folder with a space
        pytest.skip(f"torch cannot compile for the CPU here: {' '.join(str(error).split()[:12])}")

    def generated_by_inductor() -> Tensor:
        dit = fp8_dit()
        run_blocks(dit, ["none"] * len(dit.blocks), compiled=True, has_dropout=False).graphs.failures.clear()
        with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
            found: Tensor = dit(*tiny_inputs())
        assert not dit.run_block.graphs.failures  # type: ignore[attr-defined]
        torch._dynamo.reset()
        return found

    plain = EightBitRows.__call__

    def noting(self: EightBitRows, graph: Any) -> None:
        plain(self, graph)
        seen.append({node.target for node in graph.nodes})

    monkeypatch.setattr(EightBitRows, "__call__", noting)
    joined = generated_by_inductor()
    assert {norm_to_eight_bits, gelu_to_eight_bits} <= seen[0] and layer_norm_rows not in seen[0]
    monkeypatch.setattr(EightBitRows, "__call__", lambda self, graph: None)
    assert torch.equal(generated_by_inductor(), joined)
