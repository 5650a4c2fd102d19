"""What writers of cache entries that were killed leave, and how it goes."""

import os
from pathlib import Path
import time
from types import SimpleNamespace
from typing import Any

import pytest

from dataset.store import CacheStore


@pytest.fixture()
def store(tmp_path: Path) -> CacheStore:
    dataset: Any = SimpleNamespace(cache_directories=[tmp_path])
    return CacheStore(dataset)


def test_temporary_files_and_folders_of_dead_writers_are_swept(tmp_path: Path, store: CacheStore) -> None:
    old, young = tmp_path / ".a.123.abcd.tmp.safetensors", tmp_path / ".b.123.abcd.tmp.safetensors"
    half = tmp_path / ".c.123.abcd.tmp.safetensors.d"
    half.mkdir()
    for path in (old, young, half / ".tmpVr1Ky8"):
        path.write_bytes(b"x")
    for path in (old, half):
        os.utime(path, (1, 1))
    assert store.sweep() == 2
    assert list(tmp_path.iterdir()) == [young]


def test_a_temporary_file_that_another_process_renames_meanwhile_is_no_matter(
        tmp_path: Path, store: CacheStore, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = tmp_path / ".a.123.abcd.tmp.safetensors"
    busy.write_bytes(b"x")

    def renamed() -> float:
        busy.unlink(missing_ok=True)
        return time.time()

    monkeypatch.setattr("dataset.store.time", SimpleNamespace(time=renamed))
    assert store.sweep() == 0
