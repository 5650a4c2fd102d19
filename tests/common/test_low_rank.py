"""The low-rank sum as one operator, and its kernel under Triton's interpreter (on a GPU: itself)."""

from pathlib import Path
import sys

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from common.low_rank import add_low_rank, add_low_rank_in_place, low_rank_gradients, why_not
from tests.interpreted import needs_triton, run_interpreted

SIZES = [(70, 200, 32), (64, 128, 4), (3, 257, 20), (130, 16, 64), (5, 7, 255)]


def test_the_operator_is_the_sum_with_its_gradients() -> None:
    torch.manual_seed(0)
    base, low, up = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((5, 7), (5, 3), (7, 3)))
    found, right = add_low_rank(base, low, up, 0.5), base + 0.5 * low @ up.T
    torch.testing.assert_close(found, right)
    gradient = torch.randn_like(right)
    for one, other in zip(torch.autograd.grad(found, (base, low, up), gradient),
                          torch.autograd.grad(right, (base, low, up), gradient), strict=True):
        torch.testing.assert_close(one, other)
    torch.library.opcheck(add_low_rank, (base, low, up, 0.5))


def test_in_place_is_the_same() -> None:
    base, low, up = torch.randn(5, 7), torch.randn(5, 3), torch.randn(7, 3)
    expected = add_low_rank(base, low, up, 2.0)
    add_low_rank_in_place(base, low, up, 2.0)
    assert torch.equal(base, expected)


def test_a_kernel_that_cannot_be_had_is_told_once_and_never_stops_a_run(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """As where a Triton is installed that lacks what it needs; torch's own sum is taken then."""
    (tmp_path / "triton.py").write_text("raise RuntimeError('Failed to find C compiler')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "common.low_rank_triton", raising=False)
    why_not.cache_clear()
    try:
        reasons = [why_not(torch.device("cpu"), torch.float16, 20) for _ in range(2)]
    finally:
        why_not.cache_clear()
    assert reasons == ["RuntimeError: Failed to find C compiler"] * 2
    assert [one.message for one in caplog.records] == [
        "LoRA of rank 20 is added without its own kernel, a little slower: RuntimeError: Failed to find C compiler"]


def kernel_equals_torch(device: str, dtype: torch.dtype) -> None:
    """Imported by the test below into a process of its own."""
    from common.low_rank_triton import add

    torch.manual_seed(0)
    for rows, columns, rank in SIZES:
        base, low, up = (torch.randn(size, device=device, dtype=dtype)
                         for size in ((rows, columns), (rows, rank), (columns, rank)))
        right = (base.double() + 0.25 * low.double() @ up.double().T)
        out = add(base, low, up, 0.25, torch.empty_like(base))
        error = (out.double() - right).abs()
        assert (error <= torch.finfo(dtype).eps * right.abs() + 1e-4).all(), (rows, columns, rank, float(error.max()))
        assert torch.equal(add(base, low, up, 0.25, base), out)
        assert why_not(base.device, dtype, rank) == ""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernel_does_what_torch_does() -> None:
    kernel_equals_torch("cuda", torch.bfloat16)


@needs_triton
def test_the_kernel_does_what_torch_does_under_the_interpreter(tmp_path: Path) -> None:
    # In float16: its products of bfloat16 are wrong there (numpy has no such numbers).
    code = ("import torch; from tests.common.test_low_rank import kernel_equals_torch; "
            "kernel_equals_torch('cpu', torch.float16)")
    run_interpreted(code, tmp_path)


@pytest.mark.parametrize(("strength", "passes"), [(1.0, 0), (0.5, 2)])
def test_a_strength_of_one_costs_no_pass_backward(strength: float, passes: int) -> None:
    gradient, low, up = torch.randn(6, 8), torch.randn(6, 2), torch.randn(8, 2)
    traced = make_fx(lambda *given: low_rank_gradients(*given, strength))(gradient, low, up)
    assert sum(node.target is torch.ops.aten.mul.Tensor for node in traced.graph.nodes) == passes
    for one, other in zip(traced(gradient, low, up), (gradient @ up * strength, gradient.t() @ low * strength),
                          strict=True):
        assert torch.equal(one, other)
