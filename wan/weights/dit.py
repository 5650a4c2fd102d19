"""Loading a DiT from any supported layout."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
import os
from pathlib import Path

import torch
from torch import Tensor

from common.errors import WeightsError
from wan.memory.fp8 import FP8_DTYPES, Fp8Settings
from wan.memory.fp8_model import use_fp8_linears
from wan.modules.dit import WanDiT
from wan.variants import Variant
from wan.weights.detect import RELEASED_HEAD_DIM, detect_dit
from wan.weights.load import Transform, load_into
from wan.weights.source import WeightsSource, open_weights

FOLDERS_FILES = ("diffusion_pytorch_model*.index.json", "diffusion_pytorch_model*.safetensors",
                 "transformer/*.index.json", "transformer/*.safetensors")
"""What a folder's DiT is called in the official repositories and in those of diffusers."""


def open_dit(path: str | os.PathLike[str]) -> WeightsSource:
    """The weights of a DiT, unread. WeightsError for what `open_weights` refuses and for Wan 2.2's pairs of experts."""
    if (Path(path) / "high_noise_model").is_dir():
        raise WeightsError(f"{path}: the two experts of a Wan 2.2 A14B model. Support for Wan 2.2 comes later.")
    return open_weights(path, preferred=FOLDERS_FILES)


@dataclass(frozen=True)
class DitFacts:
    """What a DiT's file tells before any weight is read."""

    variant: Variant
    stored_dtype: torch.dtype
    """dtype of the block weights in the file."""

    @property
    def is_stored_in_fp8(self) -> bool:
        """Whether the file holds the blocks in float8."""
        return self.stored_dtype in FP8_DTYPES

    def empty(self) -> WanDiT:
        """The model on the meta device: names and shapes without memory."""
        with torch.device("meta"):
            return WanDiT(self.variant)


def inspect_dit(path: str | os.PathLike[str]) -> DitFacts:
    """Variant and storage of a DiT from all its names and shapes. WeightsError as from `load_dit`."""
    with open_dit(path) as source:
        found = detect_dit(source)
        facts = DitFacts(found.variant, source.dtype(found.source_key("blocks.0.self_attn.q.weight")))
        dit = facts.empty()
        load_into(dit, source, {name: found.source_key(name) for name in dit.state_dict()}, device="meta")
        return facts


def read_parameters(path: str | os.PathLike[str], names: Iterable[str]) -> dict[str, Tensor]:
    """Single parameters of a DiT by our names, as stored, on the CPU. WeightsError as from `load_dit`."""
    with open_dit(path) as source:
        found = detect_dit(source)
        return {name: source.tensor(found.source_key(name)) for name in names}


def load_dit(path: str | os.PathLike[str], *, head_dim: int = RELEASED_HEAD_DIM,
             dtype: torch.dtype | None = torch.float32, device: torch.device | str = "cpu",
             transform: Transform | None = None, fp8: Fp8Settings | None = None,
             blocks_on_cpu: Collection[int] = ()) -> WanDiT:
    """A frozen DiT in eval mode from one file, shards or a folder, official, ComfyUI or diffusers names.

    `dtype` None keeps what is stored. `transform(name, tensor)` sees every tensor before the cast, on `device`.
    With `fp8` the linears of the blocks are stored in fp8; a file that holds them so already is taken as it is.
    `blocks_on_cpu` stay in host memory, for `wan.memory.swap`, and are on `device` for one tensor at a time alone.

    Raises WeightsError for a file that is none of these or that fits only in part, with what is missing and unexpected.
    """
    with open_dit(path) as source:
        found = detect_dit(source, head_dim=head_dim)
        with torch.device("meta"):
            dit = WanDiT(found.variant)
        if fp8 is not None:
            use_fp8_linears(dit, fp8)
        key_map = {name: found.source_key(name) for name in dit.state_dict()}
        prefixes = tuple(f"blocks.{i}." for i in blocks_on_cpu)
        return load_into(dit, source, key_map, dtype=dtype, device=device, transform=transform,
                         stays_on_cpu=lambda name: name.startswith(prefixes))
