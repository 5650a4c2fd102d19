"""Norms of tokens by rows: the operators beside what is written out, and their kernels under Triton's interpreter."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
import torch.nn.functional as F  # noqa: N812

from tests.interpreted import needs_triton, run_interpreted
from tests.tiny_dit import tiny_dit, tiny_inputs
from tests.wan.memory.test_blocks import gradients, trained
from wan.memory.blocks import run_blocks
from wan.memory.policies import POLICIES
from wan.modules import rows
from wan.modules.dit import WanDiT
from wan.modules.modulation import Segment, shift_and_scale
from wan.modules.norm import RMSNorm
from wan.modules.rope import Rope, grid_positions, rope_table, rotate

SIZES = [(6, 40, 8, 2), (10, 72, 12, 5), (4, 1536, 128, 4), (2, 600, 24, 1)]
"""Rows, width, width of a head, tokens of a sample."""
EPS = 0.1
"""Large enough to be seen in what comes out."""


def made(rows_of: int, width: int, head: int, tokens: int, *, dtype: torch.dtype, device: str = "cpu"
         ) -> tuple[Tensor, Tensor, Tensor, Tensor, Rope]:
    """Tokens far from zero, a gradient, weights and shifts a sample, and positions of which some are negative."""
    torch.manual_seed(rows_of + width)
    x, gradient = (torch.randn(rows_of, width, device=device) * 3 + 1).to(dtype), torch.randn(rows_of, width).to(dtype)
    weight, shift = (torch.randn(rows_of // tokens, width, device=device) for _ in range(2))
    rope = rope_table(grid_positions((1, tokens, 1), torch.device(device)) - 1, head)
    return x, gradient.to(device), weight, shift, rope


def written_out(x: Tensor, weight: Tensor, shift: Tensor | None, tokens: int) -> Tensor:
    """Layer norm with a weight and a shift for each sample."""
    normed = F.layer_norm(x, x.shape[-1:], eps=EPS).unflatten(0, (-1, tokens))
    return (normed * weight[:, None] + (0 if shift is None else shift[:, None])).flatten(0, 1)


@pytest.mark.parametrize(("count", "width", "head", "tokens"), SIZES)
def test_operators_are_the_norms_and_their_gradients(count: int, width: int, head: int, tokens: int) -> None:
    x, gradient, weight, shift, rope = made(count, width, head, tokens, dtype=torch.float32)
    for pair, way in (((weight, shift), "both"), ((weight, None), "weight")):
        ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
        out, right = rows.layer_norm_rows(ours, *pair, EPS)[0], written_out(plain, *pair, tokens)
        out.backward(gradient)
        right.backward(gradient)
        torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-5, msg=way)
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-5, msg=way)
    for tables in ((None, None), rope):
        ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
        out = rows.rms_norm_rows(ours, weight[0], EPS, *tables)[0]
        right = F.rms_norm(plain, (width,), weight[0], EPS)
        if tables[0] is not None:
            right = rotate(right.view(-1, tokens, width // head, head), rope).reshape(count, width)
        out.backward(gradient)
        right.backward(gradient)
        torch.testing.assert_close(out, right, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-5)


def test_only_the_tokens_have_gradients() -> None:
    x, _, weight, shift, _ = made(4, 1536, 128, 2, dtype=torch.float32)
    out, means, scales = rows.layer_norm_rows(x.requires_grad_(), weight, shift, EPS)
    assert out.requires_grad
    assert not means.requires_grad and not scales.requires_grad
    out, lengths = rows.rms_norm_rows(x, weight[0], EPS, None, None)
    assert out.requires_grad and not lengths.requires_grad


@pytest.mark.parametrize("is_turned", [False, True])
def test_operators_are_sound_for_compiling(is_turned: bool) -> None:
    x, gradient, weight, shift, rope = made(4, 48, 12, 2, dtype=torch.float32)
    if is_turned:  # tokens that lie channel after channel, as a condition may leave them
        x, gradient = x.t().contiguous().t(), gradient.t().contiguous().t()
    torch.library.opcheck(rows.layer_norm_rows, (x.requires_grad_(), weight, shift, EPS))
    torch.library.opcheck(rows.rms_norm_rows, (x, weight[0], EPS, *rope))
    _, means, scales = rows.layer_norm_rows(x.detach(), weight, shift, EPS)
    torch.library.opcheck(rows.layer_norm_rows_backward, (gradient, x.detach(), weight, means, scales))
    torch.library.opcheck(rows.rms_norm_rows_backward, (gradient, x.detach(), weight[0], scales, *rope))


@pytest.fixture
def by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of the model take the operators on the CPU too, whatever their width."""
    monkeypatch.setattr(rows, "lies_on_gpu", lambda x: True)
    monkeypatch.setattr(rows, "NARROWEST", 1)
    monkeypatch.setattr(rows, "HALF", (torch.float32,))


def varied(dit: WanDiT) -> WanDiT:
    """`dit` with norms that are no ones and zeros."""
    for name, parameter in dit.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1, std=0.3)
    return dit


@pytest.mark.parametrize("policy", [*POLICIES, "compiled"])
def test_a_model_by_rows_gives_the_outputs_and_gradients_of_one_without(policy: str, request: pytest.FixtureRequest
                                                                        ) -> None:
    dit = varied(tiny_dit())
    network = trained(dit)
    plain = gradients(dit, network)
    request.getfixturevalue("by_rows")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = policy == "compiled"
    run_blocks(dit, [*POLICIES] if compiled else [policy] * 4, compiled=compiled, backend="aot_eager",
               has_dropout=False)
    for _ in range(2):
        found = gradients(dit, network)
        assert not all(map(torch.equal, plain, found)), "the operators were not taken"
        for one, other in zip(plain, found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.parametrize(("tokens", "head"), [(3, 8), (12, 8), (6, 4)])
def test_positions_of_other_tokens_are_refused(by_rows: None, tokens: int, head: int) -> None:
    """A table that fits the rows by chance would turn tokens to wrong places without a word."""
    rope = rope_table(grid_positions((1, tokens, 1), torch.device("cpu")), head)
    norm = RMSNorm(16, EPS).requires_grad_(False)
    with pytest.raises(AssertionError, match="positions"):
        norm.rotated(torch.randn(2, 6, 16), rope, heads=2)


def test_a_norm_that_is_trained_gets_its_gradients(request: pytest.FixtureRequest) -> None:
    """One weight a block, so that none hides behind another."""
    dit = varied(tiny_dit())
    norms = [dit.blocks[0].norm3.weight, dit.blocks[1].self_attn.norm_q.weight, dit.blocks[2].modulation,
             dit.blocks[3].norm3.bias]
    for weight in norms:
        weight.requires_grad_()
    plain = torch.autograd.grad(dit(*tiny_inputs()).square().mean(), norms)
    request.getfixturevalue("by_rows")
    for one, other in zip(torch.autograd.grad(dit(*tiny_inputs()).square().mean(), norms), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sizes", [((2, 1), (1, 3)), ((2, 4), (1, 1)), ((1, 4), (2, 3)), ((1, 1), (2, 1))], ids=str)
def test_every_run_of_tokens_has_its_own_shift_and_scale(sizes: tuple[tuple[int, int], ...],
                                                         request: pytest.FixtureRequest) -> None:
    """Tables for a sample or for all, for a token or for a run, in every mixture."""
    torch.manual_seed(0)
    tokens, own = torch.randn(2, 7, 8), torch.randn(1, 6, 8)
    modulation = tuple(Segment(length, torch.randn(*size, 6, 8)) for length, size in zip((4, 3), sizes, strict=True))
    plain = shift_and_scale(tokens, modulation, own, (3, 4), EPS)
    request.getfixturevalue("by_rows")
    torch.testing.assert_close(shift_and_scale(tokens, modulation, own, (3, 4), EPS), plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "dtype", "on_gpu", "expected"), [
    (512, torch.bfloat16, True, True), (16384, torch.float16, True, True), (512, torch.bfloat16, False, False),
    (512, torch.float32, True, False), (504, torch.bfloat16, True, False), (16392, torch.bfloat16, True, False)])
def test_rows_are_for_wide_tokens_in_half_precision_on_a_gpu(width: int, dtype: torch.dtype, on_gpu: bool,
                                                             expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if on_gpu:
        monkeypatch.setattr(rows, "lies_on_gpu", lambda x: True)
    assert rows.goes_by_rows(torch.empty(2, width, dtype=dtype), None, torch.empty(width)) is expected


def kernels_equal_torch(device: str, dtype: torch.dtype) -> None:
    """The kernels beside the same operation by operation, at odd sizes, with one rounding of difference."""
    from wan.modules import rows_triton as kernels

    def near(found: Tensor, right: Tensor) -> None:
        torch.testing.assert_close(found.double(), right, rtol=1.01 * torch.finfo(dtype).eps, atol=1e-4)

    for size in SIZES:
        x, gradient, weight, shift, rope = made(*size, dtype=dtype, device=device)
        exact, tables = x.double().requires_grad_(), Rope(rope.cos.double(), rope.sin.double())
        for pair in ((weight, shift), (weight, None)):
            right = written_out(exact, weight.double(), None if pair[1] is None else shift.double(), size[3])
            (slope,) = torch.autograd.grad(right, exact, gradient.double())
            out, means, scales = kernels.layer_norm(x, *pair, EPS)
            near(out, right)
            near(kernels.layer_norm_backward(gradient, x, weight, means, scales), slope)
        for one, its in ((None, None), (rope, tables)):
            right = F.rms_norm(exact, (size[1],), weight[0].double(), EPS)
            if its is not None:
                right = rotated(right, its, size)
            (slope,) = torch.autograd.grad(right, exact, gradient.double())
            out, lengths = kernels.rms_norm(x, weight[0], EPS, *(one or (None, None)))
            near(out, right)
            near(kernels.rms_norm_backward(gradient, x, weight[0], lengths, *(one or (None, None))), slope)
    assert rows.why_not(torch.device(device)) == ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_has_kernels", lambda x: True)
        sound_for_compiling(dtype, device)


def sound_for_compiling(dtype: torch.dtype, device: str) -> None:
    """Results of the kernels lie as torch was told, each in memory of its own."""
    x, gradient, weight, shift, rope = made(5, 48, 12, 1, dtype=dtype, device=device)
    _, means, scales = rows.layer_norm_rows(x, weight, shift, EPS)
    _, lengths = rows.rms_norm_rows(x, weight[0], EPS, *rope)
    calls = [(rows.layer_norm_rows, (x, weight, shift, EPS)), (rows.rms_norm_rows, (x, weight[0], EPS, *rope)),
             (rows.layer_norm_rows_backward, (gradient, x, weight, means, scales)),
             (rows.rms_norm_rows_backward, (gradient, x, weight[0], lengths, *rope))]
    for operator, given in calls:
        torch.library.opcheck(operator, given, test_utils=("test_schema", "test_faketensor"))


def rotated(x: Tensor, rope: Rope, size: tuple[int, int, int, int]) -> Tensor:
    """`rotate` in float64."""
    count, width, head, tokens = size
    by_heads = x.view(-1, tokens, width // head, head)
    other = by_heads.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (by_heads * rope.cos + other * rope.sin).reshape(count, width)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_do_what_torch_does() -> None:
    kernels_equal_torch("cuda", torch.bfloat16)


@needs_triton
def test_the_kernels_do_what_torch_does_under_the_interpreter(tmp_path: Path) -> None:
    code = ("import torch; from tests.wan.modules.test_rows import kernels_equal_torch; "
            "kernels_equal_torch('cpu', torch.bfloat16)")
    run_interpreted(code, tmp_path)
