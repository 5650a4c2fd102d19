"""Opening weights: what is found, and what is said of files that are no weights."""

import json
from pathlib import Path
import pickle
import warnings

import pytest
from safetensors.torch import save_file
import torch
from torch import Tensor

from common.errors import WeightsError
from wan.weights.source import open_weights


def _two() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4, dtype=torch.bfloat16)}


def test_tensors_are_read_one_by_one_with_metadata(tmp_path: Path) -> None:
    save_file(_two(), tmp_path / "x.safetensors", metadata={"made": "here"})
    with open_weights(tmp_path / "x.safetensors") as source:
        assert set(source.keys()) == {"a.weight", "b"}
        assert source.metadata == {"made": "here"}
        assert source.shape("a.weight") == (2, 3)
        assert source.dtype("b") == torch.bfloat16
        assert all(torch.equal(source.tensor(name), tensor) for name, tensor in _two().items())


def test_a_tensor_outlives_the_file(tmp_path: Path) -> None:
    save_file(_two(), tmp_path / "x.safetensors")
    with open_weights(tmp_path / "x.safetensors") as source:
        tensor = source.tensor("a.weight")
    (tmp_path / "x.safetensors").write_bytes(b"")
    assert torch.equal(tensor, _two()["a.weight"])


def test_views_and_transposed_tensors_of_a_pth_are_read(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"base": base, "row": base[2], "turned": base.T, "part": base[1:3, 2:4], "empty": torch.empty(0, 3),
               "one": torch.tensor(3.5)}
    torch.save(tensors, tmp_path / "x.pth")
    source = open_weights(tmp_path / "x.pth")
    for name, tensor in tensors.items():
        assert torch.equal(source.tensor(name), tensor), name


def test_shards_without_index_are_one(tmp_path: Path) -> None:
    for number, (name, tensor) in enumerate(_two().items()):
        save_file({name: tensor}, tmp_path / f"m-{number + 1:05d}-of-00002.safetensors")
    for given in ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors", "."):
        assert set(open_weights(tmp_path / given)) == {"a.weight", "b"}


def test_preferred_patterns_decide_in_a_folder_of_several_models(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "first.safetensors")
    save_file({"b": torch.zeros(1)}, tmp_path / "second.safetensors")
    assert open_weights(tmp_path, preferred=("sec*",)).keys() == ["b"]
    with pytest.raises(WeightsError, match=r"holds 2 models \(first.safetensors, second.safetensors\). Give the one"):
        open_weights(tmp_path)


@pytest.mark.parametrize(("content", "message"), [
    (b"", r"the file is empty \(0 bytes\)"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", r"Git LFS pointer.*git lfs pull"),
    (b"<!DOCTYPE html><html>Not found</html>", r"a web page, not weights"),
    (b"GGUF\x03\x00\x00\x00", r"GGUF file.*safetensors"),
    (b"\0" * 4096, r"begins with zeros: a download that was cut off"),
    (b"\x07\x00\x00", r"not a whole safetensors file"),
    (b"PK\x03\x04 something", r"cannot be read as a PyTorch file; cut short or damaged"),
    (b"\x80\x02}q\x00.", r"cannot be read as a PyTorch file|holds no tensors"),
])
def test_files_that_are_no_weights_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        open_weights(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_truncated_files_are_refused_before_anything_is_read(name: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / name
    tensors = {str(i): torch.randn(64, 64) for i in range(8)}
    save_file(tensors, path) if name.endswith("safetensors") else torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:int(path.stat().st_size * kept)])
    with pytest.raises(WeightsError, match=r"cut short or damaged|not a whole safetensors|ends within"):
        open_weights(path)


def test_a_pickle_of_another_program_is_refused_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(pickle.dumps(print))
    with warnings.catch_warnings(), pytest.raises(WeightsError, match="holds Python objects besides tensors"):
        warnings.simplefilter("error")  # torch speaks of the pickle's protocol before it refuses
        open_weights(tmp_path / "x.pth")


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "was_run",)

    torch.save({"a": torch.zeros(1), "b": Harmful()}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="holds Python objects besides tensors.*safetensors"):
        open_weights(tmp_path / "x.pth")
    assert not (tmp_path / "was_run").exists()


def test_a_pth_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"holds no tensors by name \(list\)"):
        open_weights(tmp_path / "x.pth")


def test_missing_files_are_told_with_the_nearest_name(tmp_path: Path) -> None:
    save_file(_two(), tmp_path / "wan2.1_t2v.safetensors")
    with pytest.raises(WeightsError, match=r"wan2.1_tv2.safetensors: not found \(nearest: 'wan2.1_t2v.safetensors'\)"):
        open_weights(tmp_path / "wan2.1_tv2.safetensors")
    with pytest.raises(WeightsError, match="the folder .*nowhere does not exist"):
        open_weights(tmp_path / "nowhere" / "x.safetensors")


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights in this folder. Looked for vae.pth, .safetensors"):
        open_weights(tmp_path, preferred=("vae.pth",))


def test_missing_shards_are_listed(tmp_path: Path) -> None:
    save_file(_two(), tmp_path / "m-00002-of-00003.safetensors")
    with pytest.raises(WeightsError, match=r"2 of 3 shards are missing beside it: m-00001-of-00003.*, m-00003"):
        open_weights(tmp_path / "m-00002-of-00003.safetensors")


def test_an_index_is_held_to_its_word(tmp_path: Path) -> None:
    save_file(_two(), tmp_path / "m.safetensors")
    index = tmp_path / "m.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.weight": "m.safetensors", "c": "m.safetensors"}}))
    with pytest.raises(WeightsError, match=r"names 1 tensors that are in none of its files \(c\)"):
        open_weights(index)
    index.write_text(json.dumps({"weight_map": {"a.weight": "gone.safetensors"}}))
    with pytest.raises(WeightsError, match=r"1 of the 1 files that it lists are missing: gone.safetensors"):
        open_weights(index)
    index.write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        open_weights(index)
    index.write_text("[]")
    with pytest.raises(WeightsError, match="has no 'weight_map'"):
        open_weights(index)


def test_a_shard_that_does_not_belong_is_found(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file(_two(), tmp_path / f"m-{number:05d}-of-00002.safetensors")
    with pytest.raises(WeightsError, match=r"m-00002-of-.*: repeats tensors of another shard \(a.weight\)"):
        open_weights(tmp_path)
