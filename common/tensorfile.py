"""Safetensors files: atomic writes, header reading, lazy opening."""

from collections.abc import Iterable, Mapping
import json
import math
import os
from pathlib import Path
import re
import shutil
import struct
from typing import Any

import torch
from torch import Tensor

from common.atomic import atomic_path
from common.errors import UserError

MAX_HEADER_BYTES = 100_000_000
STREAMED_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` (moved to the CPU, made contiguous) with text `metadata`; the old file stays until all is there.

    A full disk is an OSError, as from Python's own writes. safetensors writes under a name of its own (``.tmpVr1Ky8``)
    beside the file that it is told: it gets a folder under ours, so that a killed process leaves nothing that nobody
    knows.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        folder = temporary.with_name(f"{temporary.name}.d")
        folder.mkdir()
        try:
            save_file(contiguous, folder / temporary.name, metadata=dict(metadata))
            os.replace(folder / temporary.name, temporary)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def stream_tensors(path: str | os.PathLike[str], layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
                   tensors: Iterable[tuple[str, Tensor]], metadata: Mapping[str, str]) -> None:
    """Write tensors one by one as they come, atomically: the file may be larger than memory.

    `layout` gives dtype (float32, bfloat16 or float16) and shape by name, `tensors` the same names in the same order.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape) in layout.items():
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": STREAMED_DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data begins at a multiple of eight
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, (dtype, shape)), (given, tensor) in zip(layout.items(), tensors, strict=True):
            assert (given, tensor.dtype, tuple(tensor.shape)) == (name, dtype, shape), (given, name)
            tensor = tensor.detach().to("cpu").contiguous()
            file.write(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Metadata and {name: {dtype, shape, data_offsets}} of a safetensors file, without reading any tensor.

    Raises UserError naming the file when it is empty, cut short or no safetensors file.
    """
    size = Path(path).stat().st_size
    try:
        with open(path, "rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}). Copy or make it again.") from error
    if 8 + length + end != size:
        raise UserError(f"{path}: cut short or damaged: {size} bytes, its header tells of {8 + length + end}. "
                        "Copy or download it again.")
    return metadata, header


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors (CPU) and the metadata of a safetensors file."""
    from safetensors import safe_open

    read_header(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
