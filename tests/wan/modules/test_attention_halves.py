"""Attention kernels by their halves: the numbers of the whole, computed before or not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wan.modules.attention import attend, check_backend
from wan.modules.attention_halves import CUDNN, FA4, FLASH, FLASH_ON_CPU, Results, again, keeper, keeping, kernel_of


def numbers(run: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """Output and gradients of q, k and v."""
    q, k, v = (one.clone().requires_grad_() for one in given[:3])
    out = run(q, k, v)
    return [out, *torch.autograd.grad(out, (q, k, v), given[3])]


def drawn(length: int, keys: int, heads: int, width: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, count, heads, width, device=device, dtype=dtype) for count in (length, keys, keys, length)]


class Once:
    """Keeps the first results, on the CPU between."""

    def __init__(self) -> None:
        self.found: Results = ()
        self.computed = 0

    def __call__(self, compute: Callable[[], Results]) -> Results:
        if not self.found:
            self.computed += 1
            self.found = compute()
        return tuple(one.detach().clone() for one in self.found)


def equal_to_the_whole(backend: str, given: list[Tensor]) -> None:
    kernel = kernel_of(backend, given[0], given[1])
    assert kernel is not None
    whole, once = numbers(lambda q, k, v: attend(q, k, v, backend=backend), given), Once()
    for _ in range(2):
        for found, expected in zip(numbers(lambda q, k, v: again(kernel, once, q, k, v), given), whole, strict=True):
            torch.testing.assert_close(found, expected, atol=0, rtol=0)
            assert found.shape == expected.shape
    assert once.computed == 1


def test_on_the_cpu_the_halves_give_the_numbers_of_the_whole() -> None:
    given = drawn(6, 6, 3, 8, "cpu", torch.float32)
    assert kernel_of("sdpa", given[0], given[1]) is FLASH_ON_CPU
    equal_to_the_whole("sdpa", given)


def test_back_ends_without_halves_are_told() -> None:
    q = torch.zeros(1, 4, 2, 8)
    assert [kernel_of(name, q, q) for name in ("math", "efficient", "flash_attn", "flash3")] == [None] * 4


def test_each_back_end_has_its_own_halves() -> None:
    q, short = (torch.empty(1, count, 2, 8, device="meta", dtype=torch.bfloat16) for count in (5000, 512))
    assert [kernel_of("fa4", q, q), kernel_of("fa4", q, short), kernel_of("cudnn", q, q)] == [FA4, CUDNN, CUDNN]


def test_a_keeper_is_there_inside_alone() -> None:
    def one(q: Tensor, k: Tensor, v: Tensor, backend: str | None) -> Tensor:
        return q

    assert keeper() is None
    with pytest.raises(KeyError), keeping(one):
        assert keeper() is one
        raise KeyError
    assert keeper() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("backend", ["cudnn", "fa4", "sdpa"])
def test_on_a_gpu_the_halves_give_the_numbers_of_the_whole(backend: str) -> None:
    """FA4 sums a query's gradients in any order; the others repeat themselves."""
    try:
        check_backend(backend)
    except Exception as error:  # noqa: BLE001
        pytest.skip(str(error))
    given = drawn(4224, 4224, 4, 128, "cuda", torch.bfloat16)
    kernel, once = kernel_of(backend, given[0], given[1]), Once()
    assert kernel in (CUDNN, FA4, FLASH)
    whole = numbers(lambda q, k, v: attend(q, k, v, backend=backend), given)
    for _ in range(2):
        for found, expected in zip(numbers(lambda q, k, v: again(kernel, once, q, k, v), given), whole, strict=True):
            largest = expected.abs().max().item()
            torch.testing.assert_close(found, expected, atol=4e-3 * largest, rtol=0)
    assert once.computed == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_flash_attention_of_torch_has_halves_on_a_gpu() -> None:
    """Where cuDNN's kernel is not chosen, as on cards before Hopper."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    given, once = drawn(1024, 1024, 4, 128, "cuda", torch.bfloat16), Once()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert kernel_of("sdpa", given[0], given[1]) is FLASH
        whole = numbers(lambda q, k, v: attend(q, k, v, backend="sdpa"), given)
    for _ in range(2):
        for found, expected in zip(numbers(lambda q, k, v: again(FLASH, once, q, k, v), given), whole, strict=True):
            torch.testing.assert_close(found, expected, atol=4e-3 * expected.abs().max().item(), rtol=0)
