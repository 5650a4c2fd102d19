"""Rows in eight bits: the operator, and the kernels under Triton's interpreter (on a GPU: themselves)."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.interpreted import needs_triton, run_interpreted
from wan.memory.fp8_rows import E4M3, FORMAT, LARGEST, SMALLEST_SCALE, quantise_rows, why_not
from wan.modules.block import gelu_by_sigmoid
from wan.modules.rows import layer_norm_rows


def test_the_operator_is_sound_for_compiling() -> None:
    x = torch.randn(5, 24, dtype=torch.bfloat16)
    for one in (x, x.t()):
        torch.library.opcheck(quantise_rows, (one,),
                              test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


def test_no_number_stays_none() -> None:
    """A broken activation must reach the loss, where the run is stopped."""
    x = torch.ones(2, 16, dtype=torch.bfloat16)
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    values, scale = quantise_rows(x)
    found = values.float() * scale
    assert found[0, 3].isnan() and found[1, 5].isnan()


FACTOR, EXACT = torch.tensor(0.3), 1e-3


def kernels_equal_torch(device: str, dtype: torch.dtype) -> None:
    """The kernels beside torch's operations on the CPU: the same scales and, but for ties, the same values.

    `dtype` is what the kernels write; in float32 torch rounds afterwards.
    """
    from wan.memory.fp8_triton import gelu, layer_norm, quantise

    written = FORMAT._replace(dtype=dtype)
    cut = 0.08  # behind a norm or GELU they round once, from float32, and the operations apart twice

    def compared(found: tuple[Tensor, ...], right: Tensor, near: float) -> None:
        """`near` is the share of numbers that may be rounded otherwise."""
        values, scale = found[0].cpu().to(E4M3), found[1].cpu()
        right_values, right_scale = quantise_rows(right, FACTOR)
        torch.testing.assert_close(scale, right_scale, rtol=1e-6 if near == EXACT else 2**-7, atol=0)
        differs = values.view(torch.uint8) != right_values.view(torch.uint8)
        assert differs.float().mean() < near, (right.shape, differs.float().mean())
        smallest = 2**-9 if near == EXACT else 0.02
        torch.testing.assert_close(values.float(), right_values.float(), rtol=0.13, atol=smallest)

    torch.manual_seed(1)
    there = FACTOR.to(device)
    for rows, width in ((3, 16), (5, 1536), (2, 5120), (1, 13824)):
        x = (torch.randn(rows, width) * torch.logspace(-3, 2, rows)[:, None]).to(torch.bfloat16)
        x[0, 1] = 0
        found = quantise(x.to(device), written, there)
        assert found[0].cpu().to(E4M3).float().abs().amax(1).eq(LARGEST).all()
        compared(found, x, EXACT)
        for keeps in (False, True):
            found = gelu(x.to(device), written, there, keeps=keeps)
            compared(found, gelu_by_sigmoid(x), cut)
            assert len(found) == (3 if keeps else 2)
            for one in found[2:]:
                torch.testing.assert_close(one.cpu(), gelu_by_sigmoid(x), rtol=2**-7, atol=1e-3)
        weight, shift = (torch.randn(rows, width) for _ in range(2))
        for given in (None, shift):
            right = layer_norm_rows(x, weight, given, 1e-6)
            on = [None if one is None else one.to(device) for one in (x, weight, given)]
            for keeps in (False, True):
                found = layer_norm(*on, 1e-6, written, there, keeps=keeps)
                compared(found, right[0], cut)
                assert len(found) == (5 if keeps else 2)
                for one, other in zip(found[2:], right, strict=False):
                    torch.testing.assert_close(one.cpu(), other, rtol=2**-7 if one.ndim == 2 else 1e-4, atol=1e-3)
    zeros, scale = quantise(torch.zeros(2, 48, dtype=torch.bfloat16, device=device), written, None)
    assert not zeros.float().any() and scale.cpu().eq(SMALLEST_SCALE).all()
    broken = torch.ones(2, 16, dtype=torch.bfloat16, device=device)
    broken[0, 3], broken[1, 3] = float("nan"), float("inf")
    assert quantise(broken, written, None)[0].float()[:, 3].isnan().all()
    assert gelu(broken, written, None, keeps=False)[0].float()[:, 3].isnan().all()
    ends = torch.tensor([[-3e38, -100.0, -0.0, 100.0]], dtype=torch.bfloat16, device=device)
    values, scale = gelu(ends, written, None, keeps=False)
    torch.testing.assert_close((values.float() * scale).cpu(), torch.tensor([[0, 0, 0, 100.0]]))


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
                    reason="needs a GPU with float8")
def test_the_kernels_do_what_torch_does() -> None:
    kernels_equal_torch("cuda", E4M3)
    assert why_not(torch.device("cuda")) == ""


@needs_triton
def test_the_kernels_do_what_torch_does_under_the_interpreter(tmp_path: Path) -> None:
    # It rounds to eight bits in a way of its own, so the kernels write float32 there.
    code = ("import torch; from tests.wan.memory.test_fp8_rows import kernels_equal_torch; "
            "kernels_equal_torch('cpu', torch.float32)")
    run_interpreted(code, tmp_path)
