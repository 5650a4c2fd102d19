"""Fingerprints of files: the whole content of media, a wide sample of weights."""

from collections.abc import Iterator, Mapping, Sequence
import json
import os
from pathlib import Path
import struct
from typing import TYPE_CHECKING, Any

import xxhash

from common.atomic import write_text
from common.errors import WeightsError
from common.logs import get_logger

if TYPE_CHECKING:
    from torch import Tensor

log = get_logger(__name__)

CACHE_FOLDER_VARIABLE = "OMNITUNER_CACHE_DIR"
WHOLE_BELOW_BYTES = 64 * 2**20
"""Files up to this size are hashed whole; it takes less time than a look into the memory file is worth."""

_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pth", ".pt", ".json", ".model", ".txt"})
_CHUNK = 8 * 2**20
_BLOCK = 64 * 2**10
_SPREAD_BLOCKS = 256
_TENSOR_BLOCK = 4 * 2**10
_VERSION = 1


def user_cache_folder() -> Path:
    """Folder of this user for what may be forgotten: the platform's, or the one that OMNITUNER_CACHE_DIR names."""
    if override := os.environ.get(CACHE_FOLDER_VARIABLE):
        return Path(override)
    import platformdirs

    return Path(platformdirs.user_cache_dir("omnituner", appauthor=False))


def text_hash(text: str) -> str:
    """xxh3-128 of `text` as UTF-8, in hex."""
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8"))


def tensors_hash(tensors: "Mapping[str, Tensor]") -> str:
    """xxh3-128 of names, shapes and every byte of `tensors`, in hex."""
    import torch

    digest = xxhash.xxh3_128()
    for name, tensor in tensors.items():
        digest.update(f"{name}\0{tensor.dtype}{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def content_hash(path: str | os.PathLike[str]) -> str:
    """xxh3-128 of every byte of a file, in hex; of a folder, of the names and contents of the files directly in it."""
    digest = xxhash.xxh3_128()
    if Path(path).is_dir():
        for file in sorted(entry for entry in Path(path).iterdir() if entry.is_file()):
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            _update_whole(digest, file)
    else:
        _update_whole(digest, path)
    return digest.hexdigest()


def weights_fingerprint(paths: Sequence[str | os.PathLike[str]]) -> str:
    """Fingerprint of a model's files, in hex: sizes, headers, and data sampled densely enough to tell models apart.

    Files up to 64 MiB count whole. Of larger ones it reads the header, a block in the middle of every tensor and 256
    blocks spread over the file; a `.pth` archive's directory holds a checksum of every tensor, and is part of it. So
    equal names and shapes with other values are told apart, in a second for 28 GB. The value does not depend on where
    or under which name the files lie. Large files are remembered by path, size and times in the user's cache folder.

    `paths` are files or folders (of a folder, the weights and settings below it). WeightsError names a missing one.
    """
    digest = xxhash.xxh3_128(f"weights {_VERSION}".encode())
    for path in paths:
        digest.update(f"path\0{_one(Path(path))}\0".encode())
    return digest.hexdigest()


def _one(path: Path) -> str:
    if not path.exists():
        raise WeightsError(f"{path}: no such file or folder.")
    if path.is_file():
        return _file_fingerprint(path)
    files = sorted(file for file in path.rglob("*") if file.suffix in _WEIGHT_SUFFIXES and file.is_file()
                   and not any(part.startswith(".") for part in file.relative_to(path).parts))
    if not files:
        raise WeightsError(f"{path}: no weights in this folder (looked for {', '.join(sorted(_WEIGHT_SUFFIXES))}).")
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\0{_file_fingerprint(file)}\0".encode())
    return digest.hexdigest()


def _file_fingerprint(path: Path) -> str:
    status = path.stat()
    if status.st_size <= WHOLE_BELOW_BYTES:
        return content_hash(path)
    # The change time cannot be set by hand, so a file replaced within one tick of its mtime is still noticed.
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, _VERSION]
    name = str(path.resolve())
    remembered = _read_memory().get(name)
    if isinstance(remembered, dict) and remembered.get("state") == state:
        return str(remembered["fingerprint"])
    fingerprint = _sampled(path, status.st_size)
    _remember(name, {"state": state, "fingerprint": fingerprint})
    return fingerprint


def _sampled(path: Path, size: int) -> str:
    digest = xxhash.xxh3_128(f"{size}\0".encode())
    with open(path, "rb") as file:
        for start, length in _ranges(file, size):
            file.seek(start)
            digest.update(f"{start}\0".encode())
            digest.update(file.read(length))
    return digest.hexdigest()


def _ranges(file: Any, size: int) -> Iterator[tuple[int, int]]:
    """(start, length) of the bytes that stand for the file."""
    step = max((size - _BLOCK) // (_SPREAD_BLOCKS - 1), 1)
    yield from ((index * step, _BLOCK) for index in range(_SPREAD_BLOCKS))
    # An archive of torch.save ends with its directory, where each record has its CRC-32.
    yield max(size - _CHUNK, 0), _CHUNK
    file.seek(0)
    header_bytes = struct.unpack("<Q", file.read(8))[0]
    if header_bytes > min(size, 10**8):
        return
    try:
        header = json.loads(file.read(header_bytes))
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    yield 0, 8 + header_bytes
    yield from ((8 + header_bytes + (start + end) // 2, _TENSOR_BLOCK) for start, end in spans)


def _update_whole(digest: Any, path: str | os.PathLike[str]) -> None:
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)


def _memory_file() -> Path:
    return user_cache_folder() / "fingerprints.json"


def _read_memory() -> dict[str, Any]:
    try:
        memory = json.loads(_memory_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return memory if isinstance(memory, dict) else {}


def _remember(name: str, value: dict[str, Any]) -> None:
    from filelock import FileLock, Timeout

    file = _memory_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{file}.lock", timeout=10):
            memory = {path: entry for path, entry in _read_memory().items() if os.path.exists(path)}
            write_text(file, json.dumps(memory | {name: value}, indent=1))
    except (OSError, Timeout) as error:
        log.debug("fingerprints are not remembered: %s", error)
