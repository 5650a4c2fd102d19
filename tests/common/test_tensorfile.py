"""Safetensors files: whole or refused by name."""

from collections.abc import Iterator
import errno
import json
from pathlib import Path
import struct

import pytest
from safetensors import safe_open
import safetensors.torch
import torch

from common.errors import UserError
from common.tensorfile import load_tensors, read_header, save_tensors, stream_tensors


@pytest.fixture()
def file(tmp_path: Path) -> Path:
    path = tmp_path / "entry.safetensors"
    save_tensors(path, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, {"k": "ü"})
    return path


def test_what_was_saved_is_loaded(file: Path) -> None:
    tensors, metadata = load_tensors(file)
    assert torch.equal(tensors["a"], torch.arange(6.0).reshape(2, 3))
    assert tensors["b"].dtype == torch.bfloat16
    assert metadata == {"k": "ü"}


def test_header_is_read_without_the_tensors(file: Path) -> None:
    metadata, header = read_header(file)
    assert metadata == {"k": "ü"}
    assert header["a"]["shape"] == [2, 3]


def test_views_and_transposed_tensors_are_saved_by_value(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    save_tensors(tmp_path / "v.safetensors", {"t": base.T, "row": base[1]}, {})
    tensors, _ = load_tensors(tmp_path / "v.safetensors")
    assert torch.equal(tensors["t"], base.T)
    assert torch.equal(tensors["row"], base[1])


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_cut_file_is_refused_by_name(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"entry\.safetensors: (not a whole|cut short)"):
        load_tensors(file)


def test_other_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"hello world, this is text", struct.pack("<Q", 4) + b"[1]", struct.pack("<Q", 10**12)):
        path.write_bytes(content)
        with pytest.raises(UserError, match="x.safetensors"):
            read_header(path)
    broken = json.dumps({"a": {"dtype": "F32"}}).encode()
    path.write_bytes(struct.pack("<Q", len(broken)) + broken)
    with pytest.raises(UserError, match="x.safetensors"):
        read_header(path)


def test_failed_save_keeps_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_tensors(file, {"a": torch.zeros(2)}, {})
    assert set(load_tensors(file)[0]) == {"a", "b"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_writing_over_an_open_file_does_not_change_what_was_read(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        before = opened.get_tensor("a")
        save_tensors(file, {"a": torch.full((2, 3), -1.0)}, {})
        assert torch.equal(before, torch.arange(6.0).reshape(2, 3))
        assert torch.equal(opened.get_tensor("a"), before)
    assert torch.equal(load_tensors(file)[0]["a"], torch.full((2, 3), -1.0))


def test_a_streamed_file_is_read_by_safetensors(tmp_path: Path) -> None:
    made = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.randn(5).bfloat16(), "c": torch.tensor(2.0).half(),
            "turned": torch.arange(6.0).reshape(2, 3).T}
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in made.items()}
    stream_tensors(tmp_path / "a.safetensors", layout, iter(made.items()), {"k": "ü"})
    with safe_open(tmp_path / "a.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"k": "ü"}
        assert all(torch.equal(opened.get_tensor(name), tensor) for name, tensor in made.items())
    assert load_tensors(tmp_path / "a.safetensors")[0].keys() == made.keys()


def test_a_stream_that_breaks_leaves_the_old_file(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {})

    def breaks() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.zeros(2)
        raise RuntimeError("read error")

    layout = {name: (torch.float32, (2,)) for name in "ab"}
    with pytest.raises(RuntimeError, match="read error"):
        stream_tensors(tmp_path / "a.safetensors", layout, breaks(), {})
    assert torch.equal(load_tensors(tmp_path / "a.safetensors")[0]["a"], torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
