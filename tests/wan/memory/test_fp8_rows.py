"""Rows in eight bits: the operator, and its kernel under Triton's interpreter (on a GPU: itself)."""

from pathlib import Path

import pytest
import torch

from tests.interpreted import needs_triton, run_interpreted
from wan.memory.fp8_compute import E4M3, LARGEST, SMALLEST_SCALE, quantise_rows, why_not


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


def kernel_equals_torch(device: str, dtype: torch.dtype) -> None:
    """The kernel beside torch's operations on the CPU: the same scales and, but for ties, the same values.

    `dtype` is what the kernel writes; in float32 torch rounds afterwards.
    """
    from wan.memory.fp8_triton import quantise

    def by_kernel(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty_like(x, dtype=dtype, device=device)
        scale = quantise(x.to(device), out, LARGEST, SMALLEST_SCALE)
        return out.cpu().to(E4M3), scale.cpu()

    torch.manual_seed(1)
    for rows, width in ((3, 16), (5, 1536), (2, 5120), (1, 13824)):
        x = (torch.randn(rows, width) * torch.logspace(-3, 2, rows)[:, None]).to(torch.bfloat16)
        x[0, 1] = 0
        (values, scale), (right, right_scale) = by_kernel(x), quantise_rows(x)
        torch.testing.assert_close(scale, right_scale, rtol=1e-6, atol=0)
        assert values.float().abs().amax(1).eq(LARGEST).all()
        differs = values.view(torch.uint8) != right.view(torch.uint8)
        assert differs.float().mean() < 1e-3, (rows, width, differs.float().mean())
        torch.testing.assert_close(values.float(), right.float(), rtol=0.13, atol=2**-9)
    zeros, scale = by_kernel(torch.zeros(2, 48, dtype=torch.bfloat16))
    assert not zeros.float().any() and scale.eq(SMALLEST_SCALE).all()
    broken = torch.ones(2, 16, dtype=torch.bfloat16)
    broken[0, 3], broken[1, 3] = float("nan"), float("inf")
    assert by_kernel(broken)[0].float()[:, 3].isnan().all()


@pytest.mark.skipif(not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
                    reason="needs a GPU with float8")
def test_the_kernel_does_what_torch_does() -> None:
    kernel_equals_torch("cuda", E4M3)
    assert why_not(torch.device("cuda")) == ""


@needs_triton
def test_the_kernel_does_what_torch_does_under_the_interpreter(tmp_path: Path) -> None:
    # It rounds to eight bits in a way of its own, so the kernel writes float32 there.
    code = ("import torch; from tests.wan.memory.test_fp8_rows import kernel_equals_torch; "
            "kernel_equals_torch('cpu', torch.float32)")
    run_interpreted(code, tmp_path)
