"""Which back end a run takes. Kernels of GPUs and packages cannot run here; their checks and words can."""

import pytest
import torch

from common.errors import ConfigError
from wan.modules.attention import FEW_KEYS, PACKAGES, attend, check_backend
from wan.modules.attention_names import ONLY_FORWARD
from wan.modules.attention_ops import LARGEST, SCALE_OF_WEIGHTS
from wan.modules.attention_probe import LARGEST_ERROR, _compare, choose_attention

CPU = torch.device("cpu")


@pytest.mark.parametrize(("asked", "found"), [(None, "sdpa"), ("auto", "sdpa"), ("torch", "sdpa"), ("math", "math")])
def test_a_cpu_takes_torchs_own_choice(asked: str | None, found: str) -> None:
    chosen = choose_attention(asked, CPU, torch.float32, heads=2, head_dim=8, trains=True)
    assert chosen.name == found and chosen.words == f"{found} (cpu in float32: not timed)"


@pytest.mark.parametrize("trains", [True, False])
def test_a_kernel_that_the_device_has_not_is_refused_before_a_model_loads(trains: bool) -> None:
    with pytest.raises(ConfigError, match=r"'efficient' does not run on cpu in bfloat16 here: .*Use auto"):
        choose_attention("efficient", CPU, torch.bfloat16, heads=2, head_dim=16, trains=trains)


@pytest.mark.parametrize("name", ["cudnn", *PACKAGES])
def test_what_is_not_there_is_told_with_the_remedy(name: str) -> None:
    with pytest.raises(ConfigError, match=r"(Install it \(|needs an NVIDIA GPU).*[uU]se auto"):
        check_backend(name)


@pytest.mark.parametrize("trains", [True, False])
def test_a_right_kernel_passes_the_comparison_and_a_wrong_one_does_not(trains: bool, monkeypatch) -> None:
    _compare("sdpa", CPU, torch.bfloat16, 16, trains=trains)
    monkeypatch.setitem(attend.__globals__["BACKENDS"], "wrong", lambda q, k, v, _: attend(q, k, 1.03 * v))
    with pytest.raises(ConfigError, match="off by 3"):
        _compare("wrong", CPU, torch.bfloat16, 16, trains=trains)


def test_eight_bit_attention_holds_what_it_claims() -> None:
    """The rounding of `attend_in_fp8`, step by step in float32: cuDNN's kernel itself needs a GPU."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, FEW_KEYS, 1, 16) + shift for shift in (0.0, 2.0, -1.0))
    exact = attend(q[:, :32], k, v, backend="math")

    def rounded(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax() / LARGEST
        return (x / scale).to(torch.float8_e4m3fn).float() * scale

    common = v.mean(dim=1, keepdim=True)
    scores = rounded(q)[0, :32, 0] @ rounded(k - k.mean(dim=1, keepdim=True))[0, :, 0].T / 4
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    eight = (weights * SCALE_OF_WEIGHTS).to(torch.float8_e4m3fn).float() / SCALE_OF_WEIGHTS
    out = eight @ rounded(v - common)[0, :, 0] / weights.sum(-1, keepdim=True) + common[0, :, 0]
    error = (out - exact[0, :, 0]).norm() / exact.norm()
    assert "cudnn_fp8" in ONLY_FORWARD and error < LARGEST_ERROR["eight bits"] / 5
