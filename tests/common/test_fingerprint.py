"""Fingerprints: what they notice, and what they leave out."""

import os
from pathlib import Path
import shutil
import zipfile

import pytest
import torch

from common import fingerprint
from common.errors import WeightsError
from common.fingerprint import content_hash, tensors_hash, text_hash, user_cache_folder, weights_fingerprint
from common.tensorfile import save_tensors


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(fingerprint.CACHE_FOLDER_VARIABLE, str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


@pytest.fixture()
def large_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat every file as a large one, and sample sparsely, so that small files show what large ones do."""
    monkeypatch.setattr(fingerprint, "WHOLE_BELOW_BYTES", 0)
    monkeypatch.setattr(fingerprint, "_BLOCK", 16)
    monkeypatch.setattr(fingerprint, "_CHUNK", 16)
    monkeypatch.setattr(fingerprint, "_SPREAD_BLOCKS", 4)


def write_weights(path: Path, seed: int) -> Path:
    draws = torch.Generator().manual_seed(seed)
    save_tensors(path, {f"layer.{i}": torch.randn(40, 40, generator=draws) for i in range(6)}, {})
    return path


def test_same_names_and_shapes_with_other_values_are_told_apart(tmp_path: Path) -> None:
    assert (weights_fingerprint([write_weights(tmp_path / "a.safetensors", 0)])
            != weights_fingerprint([write_weights(tmp_path / "b.safetensors", 1)]))


def test_large_file_with_one_other_tensor_is_told_apart(tmp_path: Path, large_files: None) -> None:
    tensors = {f"layer.{i}": torch.full((100, 100), float(i)) for i in range(30)}
    save_tensors(tmp_path / "a.safetensors", tensors, {})
    save_tensors(tmp_path / "b.safetensors", tensors | {"layer.17": torch.full((100, 100), 99.0)}, {})
    assert (weights_fingerprint([tmp_path / "a.safetensors"]) != weights_fingerprint([tmp_path / "b.safetensors"]))


def test_large_archive_with_one_other_number_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           large_files: None) -> None:
    monkeypatch.setattr(fingerprint, "_CHUNK", 4000)
    tensors = {f"layer.{i}": torch.zeros(100, 100) for i in range(20)}
    torch.save(tensors, tmp_path / "a.pth")
    shutil.copy(tmp_path / "a.pth", tmp_path / "same.pth")
    tensors["layer.3"][17, 5] = 1e-3
    torch.save(tensors, tmp_path / "b.pth")
    assert zipfile.is_zipfile(tmp_path / "a.pth")
    first = weights_fingerprint([tmp_path / "a.pth"])
    assert first == weights_fingerprint([tmp_path / "same.pth"])
    assert first != weights_fingerprint([tmp_path / "b.pth"])


def test_name_and_place_of_the_file_do_not_matter(tmp_path: Path) -> None:
    original = write_weights(tmp_path / "vae.safetensors", 0)
    (tmp_path / "elsewhere").mkdir()
    copy = shutil.copy(original, tmp_path / "elsewhere" / "my vae ü.safetensors")
    assert weights_fingerprint([original]) == weights_fingerprint([copy])


def test_folder_counts_its_weights_and_settings_but_no_readme(tmp_path: Path) -> None:
    folder = tmp_path / "wav2vec2"
    folder.mkdir()
    write_weights(folder / "model.safetensors", 0)
    (folder / "config.json").write_text("{}")
    before = weights_fingerprint([folder])
    (folder / "README.md").write_text("hello")
    assert weights_fingerprint([folder]) == before
    (folder / "config.json").write_text('{"layers": 3}')
    assert weights_fingerprint([folder]) != before


def test_missing_file_and_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing\.pth: no such file"):
        weights_fingerprint([tmp_path / "nothing.pth"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no weights in this folder"):
        weights_fingerprint([tmp_path / "empty"])


def test_large_file_is_hashed_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                           large_files: None) -> None:
    hashed: list[Path] = []
    sampled = fingerprint._sampled
    monkeypatch.setattr(fingerprint, "_sampled", lambda path, size: hashed.append(path) or sampled(path, size))
    file = write_weights(tmp_path / "a.safetensors", 0)
    times = file.stat()
    first = weights_fingerprint([file])
    assert weights_fingerprint([file]) == first
    assert len(hashed) == 1
    write_weights(file, 1)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights_fingerprint([file]) != first, "same size and mtime, other bytes"
    assert len(hashed) == 2


def test_unwritable_memory_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large_files: None) -> None:
    blocker = tmp_path / "a file"
    blocker.write_text("")
    monkeypatch.setenv(fingerprint.CACHE_FOLDER_VARIABLE, str(blocker / "below"))
    file = write_weights(tmp_path / "a.safetensors", 0)
    assert weights_fingerprint([file]) == weights_fingerprint([file])


def test_content_hash_of_a_folder_of_pictures_counts_names_and_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"a")
    (folder / "1.png").write_bytes(b"b")
    before = content_hash(folder)
    (folder / "1.png").rename(folder / "2.png")
    assert content_hash(folder) != before


def test_hashes_are_xxh3_of_128_bits(tmp_path: Path) -> None:
    # The value for empty input is published with the algorithm (xxHash, XXH3_128bits, seed 0).
    (tmp_path / "empty").write_bytes(b"")
    assert content_hash(tmp_path / "empty") == text_hash("") == "99aa06d3014798d86001c324468d497f"


def test_cache_folder_follows_the_environment(own_cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_cache_folder() == own_cache_folder
    monkeypatch.delenv(fingerprint.CACHE_FOLDER_VARIABLE)
    assert "omnituner" in str(user_cache_folder())


def test_tensors_are_told_apart_by_name_shape_and_any_bit() -> None:
    import torch

    base = {"a": torch.arange(6.0), "b": torch.tensor(1.0)}
    assert tensors_hash(base) == tensors_hash({name: tensor.clone() for name, tensor in base.items()})
    others = [{**base, "b": torch.tensor(-1.0)}, {**base, "a": torch.arange(6.0).reshape(2, 3)},
              {"c": base["a"], "b": base["b"]}, {name: tensor.bfloat16() for name, tensor in base.items()}]
    assert len({tensors_hash(one) for one in [base, *others]}) == 5
