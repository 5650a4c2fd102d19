"""One weights file on disk: its index of tensors, and reading any of them without touching the rest.

Tensors are read by offset into memory of their own. A memory map would count every page that was ever touched, and
would break under a file that is replaced while it is in use.
"""

from dataclasses import dataclass
from io import FileIO
import json
from pathlib import Path
import pickle
import struct
from typing import Any
import warnings
import zipfile

import torch
from torch import Tensor

from common.errors import UserError, WeightsError
from common.tensorfile import read_header

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
}
WRAPPERS = ("state_dict", "model", "module", "model_state_dict", "generator", "generator_ema", "ema", "params")
"""Names under which trainers store the tensors of a `.pth` one level down."""


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    """First byte of the underlying storage, counted from the start of the file."""
    first: int = 0
    """First element of the tensor within its storage (`.pth` files may store views)."""

    @property
    def nbytes(self) -> int:
        """Bytes from the tensor's first element to its last one."""
        if 0 in self.shape:
            return 0
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.dtype.itemsize


class TensorFile:
    """Tensors of one file by name, in the order in which they are stored; `read` returns one of them."""

    def __init__(self, path: Path, entries: dict[str, Stored], metadata: dict[str, str]) -> None:
        self.path = path
        self.entries = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].first)))
        self.metadata = metadata
        self._file: FileIO | None = None

    def read(self, name: str) -> Tensor:
        """The tensor in memory of its own, strided as it was stored. WeightsError if the file ends early."""
        entry = self.entries[name]
        buffer = torch.empty(entry.nbytes, dtype=torch.uint8)
        if self._file is None:
            self._file = FileIO(self.path, "rb")  # open until close()
        self._file.seek(entry.start + entry.first * entry.dtype.itemsize)
        view, done = memoryview(buffer.numpy()), 0
        while done < entry.nbytes:  # one read call returns at most 2 GB
            count = self._file.readinto(view[done:])
            if not count:
                raise WeightsError(f"{self.path}: ends within '{name}'. Copy or download it again.")
            done += count
        return buffer.view(entry.dtype).as_strided(entry.shape, entry.stride)

    def close(self) -> None:
        """Release the file; a later `read` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class LoadedFile(TensorFile):
    """A file of the form that PyTorch wrote before 1.6: it cannot be read by offset, so all of it is in memory."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        entries = {name: Stored(tensor.dtype, tuple(tensor.shape), tensor.stride(), 0)
                   for name, tensor in tensors.items()}
        super().__init__(path, entries, {})
        self._tensors = tensors

    def read(self, name: str) -> Tensor:
        """The tensor itself."""
        return self._tensors[name]


def open_tensor_file(path: Path) -> TensorFile:
    """Index a safetensors or PyTorch file. What it is, is seen from its first bytes, not from its suffix.

    Raises WeightsError for an empty, truncated or foreign file, and for a pickle that holds more than tensors.
    """
    with open(path, "rb") as file:
        start = file.read(512)
    _refuse_foreign(path, start)
    if start[:2] == b"PK":
        return _open_zip(path)
    if start[:1] == b"\x80" and start[8:9] != b"{":  # a safetensors header may be that long
        return _open_legacy(path)
    return _open_safetensors(path)


def _refuse_foreign(path: Path, start: bytes) -> None:
    again = "Download the file itself again."
    if not start:
        raise WeightsError(f"{path}: the file is empty (0 bytes). {again}")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a Git LFS pointer of a few bytes, not the weights. Run 'git lfs pull', or "
                           f"{again[0].lower()}{again[1:]}")
    if start.lstrip()[:1] == b"<":
        raise WeightsError(f"{path}: a web page, not weights (a download that ended on an error page). {again}")
    if start.startswith(b"GGUF"):
        raise WeightsError(f"{path}: a GGUF file, which is not supported. Use the safetensors file of the same model.")
    if not start.strip(b"\0"):
        raise WeightsError(f"{path}: begins with zeros: a download that was cut off. {again}")


def _open_safetensors(path: Path) -> TensorFile:
    try:
        metadata, header = read_header(path)
    except UserError as error:
        raise WeightsError(str(error)) from error
    with open(path, "rb") as file:
        data = 8 + struct.unpack("<Q", file.read(8))[0]
    entries = {}
    for name, entry in header.items():
        dtype, shape = SAFETENSORS_DTYPES.get(entry["dtype"]), tuple(entry["shape"])
        if dtype is None:
            raise WeightsError(f"{path}: '{name}' is stored as {entry['dtype']}, which is not supported. "
                               "Use a file in bf16, fp16, fp32 or fp8.")
        stored = Stored(dtype, shape, _contiguous(shape), data + entry["data_offsets"][0])
        if stored.nbytes != entry["data_offsets"][1] - entry["data_offsets"][0]:
            raise WeightsError(f"{path}: the header gives '{name}' another size than its shape. Download it again.")
        entries[name] = stored
    return TensorFile(path, entries, metadata)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    stride, step = [], 1
    for size in reversed(shape):
        stride.append(step)
        step *= max(size, 1)
    return tuple(reversed(stride))


def _load_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as file, warnings.catch_warnings():  # given a name, torch goes by the suffix
            warnings.simplefilter("ignore")  # it speaks of the pickle's protocol, which says nothing to a user
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path}: holds Python objects besides tensors, and loading those could run code. Convert "
                           "it to safetensors with the program that made it, or get the safetensors file.") from error
    except (RuntimeError, OSError, EOFError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: cannot be read as a PyTorch file; cut short or damaged "
                           f"({str(error).splitlines()[0][:120]}). Copy or download it again.") from error


def _open_zip(path: Path) -> TensorFile:
    """Index a `.pth`: fake tensors carry the offset of their storage, so nothing but the small pickle is read."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        tensors = _tensors_of(path, _load_pickle(path))
    size, entries = path.stat().st_size, {}
    for name, tensor in tensors.items():
        offset = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if offset is None:
            return LoadedFile(path, _tensors_of(path, _load_pickle(path)))
        entry = Stored(tensor.dtype, tuple(tensor.shape), tensor.stride(), offset, tensor.storage_offset())
        entries[name] = entry
        if entry.start + entry.first * entry.dtype.itemsize + entry.nbytes > size:
            raise WeightsError(f"{path}: ends within '{name}'. Copy or download it again.")
    return TensorFile(path, entries, {})


def _open_legacy(path: Path) -> TensorFile:
    return LoadedFile(path, _tensors_of(path, _load_pickle(path)))


def _tensors_of(path: Path, content: Any) -> dict[str, Tensor]:
    for _ in range(3):
        if not isinstance(content, dict) or any(isinstance(value, Tensor) for value in content.values()):
            break
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)} \
        if isinstance(content, dict) else {}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors by name ({type(content).__name__}). Expected a state dict.")
    return tensors


def read_json(path: Path) -> Any:
    """Content of a JSON file; WeightsError names the file when it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path}: not valid JSON ({error}). Download it again.") from error
