"""Which DiT a file holds: widths, branches and layout, read from names and shapes."""

from collections.abc import Callable
from dataclasses import dataclass
import math
from pathlib import Path
import re
from typing import Literal

from common.errors import WeightsError
from common.logs import get_logger
from wan.variants import Variant
from wan.weights.files import read_json
from wan.weights.keys import to_diffusers
from wan.weights.recognise import UNKNOWN, looks_like, recognise
from wan.weights.source import WeightsSource

log = get_logger(__name__)

RELEASED_HEAD_DIM = 128
SHAPE_KEYS = ("patch_embedding.weight", "text_embedding.0.weight", "time_embedding.0.weight", "blocks.0.ffn.0.weight",
              "head.head.weight")
"""The tensors whose shapes tell the widths."""
TAKEN_NOW = "this version takes Wan 2.1 text-to-video, image-to-video, first+last frame and Fun-Control models."
EXPERT_NAME = re.compile(r"wan_?2[._]?2|(high|low)[_-]?noise", re.IGNORECASE)


@dataclass(frozen=True)
class DitFile:
    """What was found."""

    variant: Variant
    layout: Literal["official", "diffusers"]

    def source_key(self, name: str) -> str:
        """The source's name of an official one."""
        return to_diffusers(name) if self.layout == "diffusers" else name


def detect_dit(source: WeightsSource, *, head_dim: int = RELEASED_HEAD_DIM) -> DitFile:
    """Variant and layout of a DiT's file.

    The width of a head cannot be seen in the weights: it is `head_dim`, unless that is left at the released 128 and a
    `config.json` beside the file says otherwise.
    Raises WeightsError that names what the file looks like when it is no DiT, one that a later version will take, or
    only a part of one.
    """
    kind = recognise(source)
    if kind.comes_later and kind.is_dit:
        raise WeightsError(f"{source.path}: {kind.name}. Support for it comes later; {TAKEN_NOW}")
    if kind is not UNKNOWN and not kind.is_dit:
        raise WeightsError(f"{source.path}: not a Wan DiT; {looks_like(source)}. Give the DiT's file here.")
    layout: Literal["official", "diffusers"] = "diffusers" if kind.is_diffusers else "official"
    rename: Callable[[str], str] = to_diffusers if layout == "diffusers" else str
    absent = [rename(key) for key in SHAPE_KEYS if rename(key) not in source]
    if len(absent) == len(SHAPE_KEYS) and kind is UNKNOWN:
        raise WeightsError(f"{source.path}: not a Wan DiT; {looks_like(source)}. Give the DiT's file here.")
    if absent:
        raise WeightsError(f"{source.path}: only a part of a Wan DiT: {len(source)} tensors, but {', '.join(absent)} "
                           "missing. Give the whole file, or all shards of it.")
    shapes = {key: source.shape(rename(key)) for key in SHAPE_KEYS}
    found = DitFile(_variant(source, shapes, rename, head_dim), layout)
    _refuse_later_families(source, found.variant)
    return found


def _variant(source: WeightsSource, shapes: dict[str, tuple[int, ...]], rename: Callable[[str], str],
             head_dim: int) -> Variant:
    patch_weight = shapes["patch_embedding.weight"]
    if len(patch_weight) != 5:
        raise WeightsError(f"{source.path}: patch_embedding.weight has shape {list(patch_weight)}; a Wan DiT's has "
                           "five axes (width, channels, frames, rows, columns).")
    dim, in_channels, patch = patch_weight[0], patch_weight[1], patch_weight[2:]
    head_dim = _config_head_dim(source, dim) if head_dim == RELEASED_HEAD_DIM else head_dim
    if head_dim < 2 or head_dim % 2 or dim % head_dim:
        raise WeightsError(f"{source.path}: width {dim} cannot be cut into heads of {head_dim}. Give the model's "
                           "head_dim, or put its config.json beside the file.")
    numbers = [int(match[1]) for key in source if (match := re.match(r"blocks\.(\d+)\.", key))]
    image_key = rename("img_emb.proj.0.weight")
    has_image_branch = image_key in source
    return Variant(
        dim=dim, ffn_dim=shapes["blocks.0.ffn.0.weight"][0], layers=max(numbers) + 1, heads=dim // head_dim,
        in_channels=in_channels, out_channels=shapes["head.head.weight"][0] // math.prod(patch),
        text_dim=shapes["text_embedding.0.weight"][-1], freq_dim=shapes["time_embedding.0.weight"][-1],
        has_image_branch=has_image_branch, image_dim=source.shape(image_key)[0] if has_image_branch else None,
        has_image_positions=rename("img_emb.emb_pos") in source, patch=(patch[0], patch[1], patch[2]))


def _config_head_dim(source: WeightsSource, dim: int) -> int:
    """Head width by the `config.json` beside the file, if it speaks of a model of this width; else the released one."""
    folder = source.paths[0].parent
    if not (folder / "config.json").is_file():
        return RELEASED_HEAD_DIM
    config = read_json(folder / "config.json")
    heads = config.get("num_attention_heads", config.get("num_heads")) if isinstance(config, dict) else None
    if not isinstance(heads, int) or heads < 1 or dim % heads:
        return RELEASED_HEAD_DIM
    width = config.get("dim", heads * config.get("attention_head_dim", 0))
    return dim // heads if width == dim else RELEASED_HEAD_DIM


def _refuse_later_families(source: WeightsSource, variant: Variant) -> None:
    try:
        family = variant.family
    except WeightsError as error:
        raise WeightsError(f"{source.path}: {error}") from error
    names = {"wan22_ti2v": "the Wan 2.2 TI2V-5B model", "wan22_i2v": "a Wan 2.2 I2V-A14B expert"}
    if family in names:
        raise WeightsError(f"{source.path}: {names[family]}. Support for Wan 2.2 comes later; {TAKEN_NOW}")
    if EXPERT_NAME.search(Path(source.paths[0]).name):
        log.warning("%s: by its name an expert of Wan 2.2, whose tensors cannot be told from Wan 2.1's T2V-14B. It is "
                    "used like that one; support for pairs of experts comes later.", source.path)
