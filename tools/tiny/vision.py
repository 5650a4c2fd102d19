"""A tiny CLIP vision tower under the names of `models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`."""

import torch
from torch import Tensor

from tools.tiny.dit import IMAGE_DIM
from tools.tiny.draws import Draws

LAYERS, PATCH, IMAGE = 3, 14, 224
HEAD = 32


def vision_tensors(seed: int) -> dict[str, Tensor]:
    """The `visual.` tensors, float16; the official file also holds a text tower, which Wan does not use."""
    width, draws = IMAGE_DIM, Draws(seed, "clip")
    shapes: dict[str, tuple[int, ...]] = {
        "cls_embedding": (1, 1, width), "pos_embedding": (1, (IMAGE // PATCH) ** 2 + 1, width),
        "patch_embedding.weight": (width, 3, PATCH, PATCH), "head": (width, HEAD)}
    for norm in ("pre_norm", "post_norm"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for layer in range(LAYERS):
        block = f"transformer.{layer}."
        for name, rows, columns in (("attn.to_qkv", 3 * width, width), ("attn.proj", width, width),
                                    ("mlp.0", 4 * width, width), ("mlp.2", width, 4 * width)):
            shapes |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
    tensors = draws.fill(shapes)
    for key in ("cls_embedding", "pos_embedding"):
        tensors[key] = draws.normal(key, shapes[key], 0.3)
    return {f"visual.{key}": tensor.to(torch.float16) for key, tensor in tensors.items()}
