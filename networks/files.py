"""Saving a network: LoRA and condition weights with their metadata in one safetensors file."""

from collections.abc import Mapping
import os

from torch import Tensor

from common.tensorfile import save_tensors
from networks.metadata import hashes


def save_network(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write `network.state(dtype)` with metadata and hashes, atomically."""
    tensors = {key: tensor.detach().to("cpu").contiguous() for key, tensor in tensors.items()}
    save_tensors(path, tensors, {**metadata, **hashes(tensors, metadata)})
