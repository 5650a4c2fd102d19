"""Batches read ahead."""

import threading
import time

import pytest

from training.prefetch import prefetched


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_order_is_kept(workers: int) -> None:
    def load(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(prefetched(range(20), load, workers=workers)) == [n * n for n in range(20)]


def test_no_more_is_read_than_asked_for() -> None:
    loaded: list[int] = []
    batches = prefetched(range(100), lambda n: loaded.append(n) or n, workers=1, ahead=2)
    assert next(batches) == 0
    time.sleep(0.05)
    assert len(loaded) <= 4
    batches.close()


def test_an_error_comes_in_its_place() -> None:
    def load(number: int) -> int:
        if number == 2:
            raise ValueError("broken")
        return number

    batches = prefetched(range(5), load, workers=2)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(ValueError, match="broken"):
        next(batches)
    assert threading.active_count() < 10
