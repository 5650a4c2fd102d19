"""The CLIP vision tower: loading any layout on to transformers' class, and encoding pictures as Wan 2.1 does."""

from collections.abc import Callable
import os
import re

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn
import torch.nn.functional as F

from common.errors import WeightsError
from wan.encoders.detect import count_blocks, need
from wan.weights.load import Adapted, load_into
from wan.weights.source import WeightsSource, open_weights

PREFERRED = ("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "models_clip*.pth",
             "clip_vision_h*.safetensors")
REMEDY = ("Give models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth of the Wan 2.1 I2V download, or ComfyUI's "
          "clip_vision_h.safetensors.")
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of red, green and blue that CLIP was trained with."""

OFFICIAL_RULES = tuple((re.compile(pattern), new) for pattern, new in (
    (r"^embeddings\.class_embedding$", "cls_embedding"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embedding"),
    (r"^embeddings\.patch_embedding\.", "patch_embedding."),
    (r"^pre_layrnorm\.", "pre_norm."),
    (r"^post_layernorm\.", "post_norm."),
    (r"^encoder\.layers\.(\d+)\.layer_norm([12])\.", r"transformer.\1.norm\2."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.[qkv]_proj\.", r"transformer.\1.attn.to_qkv."),
    (r"^encoder\.layers\.(\d+)\.self_attn\.out_proj\.", r"transformer.\1.attn.proj."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.\1.mlp.0."),
    (r"^encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.\1.mlp.2."),
))
"""Name in transformers' `CLIPVisionModel` (no `vision_model.`) -> name in the official file (no `visual.`)."""
NOT_NEEDED = ("textual.", "log_scale", "visual.head", "head", "visual_projection.", "text_model.", "text_projection.",
              "logit_scale", "vision_model.embeddings.position_ids", "embeddings.position_ids")
"""What whole CLIP checkpoints hold besides the tower, and the projection that Wan does not use."""


class ImageEncoder:
    """Pictures to the output of CLIP's last block but one."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in and returned."""
        return next(self.model.parameters()).dtype

    @property
    def heads(self) -> int:
        """Attention heads, as given when loading."""
        return self.model.config.num_attention_heads

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B T D"]:
        """Features of pictures in -1…1 of any size: class token and 16 x 16 patches (T 257, D 1280 in the release)."""
        pixels = self.preprocess(image).to(self.dtype)
        return self.model(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]

    def preprocess(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 side side"]:
        """The official rule: stretched to the square (bicubic, no antialias, no crop), then CLIP's mean and deviation.

        In float32, or float64 where the weights are; the model's own dtype would round before the normalisation.
        """
        side = self.model.config.image_size
        image = image.to(self.device, torch.promote_types(self.dtype, torch.float32))
        image = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False) * 0.5 + 0.5
        mean, deviation = (rearrange(torch.tensor(values, dtype=torch.float64).to(image), "c -> c 1 1")
                           for values in (MEAN, STD))
        return (image - mean) / deviation


def load_image_encoder(path: str | os.PathLike[str], *, heads: int = 16, dtype: torch.dtype = torch.float32,
                       device: torch.device | str = "cpu") -> ImageEncoder:
    """The CLIP vision tower in `path` (a file or a folder that holds it), frozen.

    Sizes are read from the weights, but for the number of attention heads, which no file tells.
    Raises WeightsError when the file holds no such tower or only a part of it, or `heads` does not divide its width.
    """
    with open_weights(path, preferred=PREFERRED) as source:
        model, origins = image_encoder_on_meta(source, heads=heads)
        load_into(model, source, origins, dtype=dtype, device=device, ignored=is_not_needed)
    return ImageEncoder(model)


def image_encoder_on_meta(source: WeightsSource, *, heads: int) -> tuple[nn.Module, dict[str, str | Adapted]]:
    """transformers' empty CLIP vision tower for the weights in `source`, and {name in it: place in the source}."""
    origin = _layout(source)
    model = _build(source, origin, heads)
    # transformers 5.8 dropped the prefix from the model's names.
    return model, {key: origin(key.removeprefix("vision_model.")) for key in model.state_dict()}


def is_not_needed(key: str) -> bool:
    """Whether a CLIP file may hold `key` although the tower does not use it."""
    return key.startswith(NOT_NEEDED)


def official_origin(key: str, prefix: str = "visual.") -> str | Adapted:
    """Where the official file has the tensor that transformers' `CLIPVisionModel` calls `key`."""
    name = next((pattern.sub(new, key) for pattern, new in OFFICIAL_RULES if pattern.match(key)), None)
    assert name is not None, f"no rule for {key}"
    if ".to_qkv." in name:
        part = "qkv".index(key.partition("self_attn.")[2][0])
        return Adapted(prefix + name, lambda rows: rows.chunk(3)[part])
    if name == "cls_embedding":
        return Adapted(prefix + name, lambda token: token[0, 0])
    if name == "pos_embedding":
        return Adapted(prefix + name, lambda table: table[0])
    return prefix + name


def build_image_encoder(**sizes: int) -> nn.Module:
    """transformers' CLIP vision tower on the meta device, as Wan uses it (exact GELU, norm eps 1e-5)."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**sizes, hidden_act="gelu", layer_norm_eps=1e-5, attn_implementation="sdpa")
    with torch.device("meta"):
        model = CLIPVisionModel(config)
    for module in model.modules():  # a table of positions that no file holds
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            positions = torch.arange(module.position_ids.shape[-1])[None]
            module.register_buffer("position_ids", positions, persistent=False)
    return model


def _layout(source: WeightsSource) -> Callable[[str], str | Adapted]:
    """Function from transformers' names (without `vision_model.`) to places in the file."""
    for prefix in ("visual.", ""):
        if f"{prefix}cls_embedding" in source:
            return lambda key: official_origin(key, prefix)
    for prefix in ("vision_model.", ""):
        if f"{prefix}embeddings.class_embedding" in source:
            return lambda key: prefix + key
    need(source, ["visual.cls_embedding"], what="a CLIP vision tower", remedy=REMEDY)
    raise AssertionError


def _build(source: WeightsSource, origin: Callable[[str], str | Adapted], heads: int) -> nn.Module:
    def name(key: str) -> str:
        place = origin(key)
        return place.key if isinstance(place, Adapted) else place

    layer = "encoder.layers.0"
    patches, positions, widened = known_by = [name(key) for key in (
        "embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", f"{layer}.mlp.fc1.weight")]
    need(source, known_by, what="a CLIP vision tower", remedy=REMEDY)
    width, _, patch, _ = source.shape(patches)
    if width % heads:
        raise WeightsError(f"{source.path}: a CLIP tower of width {width} cannot have {heads} heads. Give the number "
                           "of attention heads that it was trained with (16 for ViT-H).")
    side = round((source.shape(positions)[-2] - 1) ** 0.5) * patch
    return build_image_encoder(
        hidden_size=width, intermediate_size=source.shape(widened)[0], num_attention_heads=heads, patch_size=patch,
        image_size=side, num_hidden_layers=count_blocks(source, name(f"{layer}.layer_norm1.weight").partition("0.")[0]))
