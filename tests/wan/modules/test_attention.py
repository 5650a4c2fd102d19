"""`attend()` by every back end that runs on a CPU, against the formula."""

import pytest
import torch
from torch import Tensor

from common.errors import ConfigError
from tests.tiny_dit import tiny_dit, tiny_inputs
from wan.modules.attention import BACKENDS, attend, in_parts, parts_of
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


@pytest.mark.parametrize("samples", [1, 2])
def test_queries_in_parts_give_the_same_numbers(samples: int) -> None:
    """The output and every gradient, those of the shared keys and values too."""
    given = [torch.randn(samples, count, 3, 8, dtype=torch.float64) for count in (12, 7, 7)]
    slope = torch.randn_like(given[0])

    def numbers(parts: int) -> list[Tensor]:
        q, k, v = (one.clone().requires_grad_() for one in given)
        out = in_parts(attend, q, k, v, parts)
        return [out, *torch.autograd.grad(out, (q, k, v), slope)]

    for found, expected in zip(numbers(4), numbers(1), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize(("samples", "heads", "queries", "keys", "expected"), [
    (1, 40, 32760, 512, 4), (1, 40, 6300, 512, 4), (1, 12, 32760, 512, 14), (1, 40, 32760, 257, 1),
    (2, 40, 32760, 512, 2), (8, 40, 6300, 512, 1), (1, 40, 32760, 32760, 1),
    (1, 40, 1560, 512, 3), (1, 40, 400, 512, 1), (1, 40, 1664, 512, 2),  # short ones
    (1, 40, 6301, 512, 1), (1, 40, 13 * 127, 512, 1),  # a prime number, and one whose only parts are too short
])
def test_attention_to_few_keys_is_cut_into_even_parts(samples: int, heads: int, queries: int, keys: int,
                                                      expected: int) -> None:
    q, k = (torch.empty(samples, count, heads, 128, device="meta") for count in (queries, keys))
    assert parts_of(q, k) == expected
    assert queries % expected == 0


def test_compiled_parts_keep_keys_and_values_once() -> None:
    """What waits for the backward pass is as much as without parts: the copies are made again."""
    def kept(parts: int) -> int:
        x, weight = torch.randn(1, 64, 16), torch.randn(16, 16, requires_grad=True)
        total = 0

        def count(one: Tensor) -> Tensor:
            nonlocal total
            total += one.numel()
            return one

        def block(x: Tensor, weight: Tensor) -> Tensor:
            q, k, v = ((one @ weight).unflatten(-1, (2, 8)) for one in (x, x[:, :32], x[:, 32:]))
            return (in_parts(attend, q, k, v, parts).flatten(2) @ weight).square().mean()

        torch._dynamo.reset()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda one: one):
            torch.compile(block, backend="aot_eager_decomp_partition", fullgraph=True)(x, weight)
        return total

    assert kept(4) == kept(1)
