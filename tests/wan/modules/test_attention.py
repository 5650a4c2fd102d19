"""`attend()` by every back end that runs on a CPU, against the formula."""

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError
from tests.tiny_dit import tiny_dit, tiny_inputs
from wan.modules.attention import BACKENDS, attend
from wan.modules.attention_names import ONLY_FORWARD, TRAINING


def _formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("blnk,bsnk->bnls", q, k) / q.shape[-1] ** 0.5
    return torch.einsum("bnls,bsnk->blnk", scores.softmax(-1), v)


@pytest.mark.parametrize("backend", [None, "sdpa", "math"])
def test_back_ends_compute_the_formula(backend: str | None) -> None:
    q, k, v = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    torch.testing.assert_close(attend(q, k, v, backend=backend), _formula(q, k, v))


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_keys_beyond_a_samples_length_are_not_seen(backend: str) -> None:
    q, k, v = torch.randn(2, 5, 3, 8), torch.randn(2, 7, 3, 8), torch.randn(2, 7, 3, 8)
    found = attend(q, k, v, lengths=torch.tensor([7, 4]), backend=backend)
    torch.testing.assert_close(found[:1], _formula(q[:1], k[:1], v[:1]))
    torch.testing.assert_close(found[1:], _formula(q[1:], k[1:, :4], v[1:, :4]))


def test_an_unknown_back_end_names_the_nearest() -> None:
    x = torch.zeros(1, 1, 1, 8)
    with pytest.raises(ConfigError, match="nearest: 'sdpa'"):
        attend(x, x, x, backend="spda")
    with pytest.raises(ConfigError, match="Use one of auto, sdpa, cudnn"):
        tiny_dit().set_attention("xyz")


def test_a_missing_package_is_named_with_the_remedy() -> None:
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match="pip install flash-attn"):
            tiny_dit().set_attention("flash_attn")


def test_the_dit_uses_the_back_end_that_was_set() -> None:
    dit, inputs = tiny_dit(), tiny_inputs()
    reference = dit(*inputs)
    dit.set_attention("math")
    assert {module.backend for module in dit.modules() if hasattr(module, "backend")} == {"math"}
    torch.testing.assert_close(dit(*inputs), reference, atol=2e-6, rtol=1e-5)


def test_the_table_names_its_back_ends() -> None:
    assert set(BACKENDS) == {*TRAINING, *ONLY_FORWARD}
