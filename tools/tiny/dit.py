"""Tiny DiTs: text-to-video, image-to-video, first+last frame.

The velocity of an untrained DiT is noise, and so would be every video made with it. Here patch embedding and head are
inverse to each other, so that the velocity is about the noisy latents themselves (less the given image latents), and
the random blocks only bend it: samples fall towards mid grey, or the given picture, with texture that the text changes.
"""

import torch
from torch import Tensor

from tools.tiny.draws import Draws
from wan.modules.dit import WanDiT
from wan.variants import Variant

TEXT_DIM = 64
IMAGE_DIM = 32
VARIANTS = {
    "wan2.1_t2v_tiny.safetensors": Variant(dim=256, ffn_dim=128, layers=4, heads=2, in_channels=16, out_channels=16,
                                           text_dim=TEXT_DIM),
    "wan2.1_i2v_tiny.safetensors": Variant(dim=128, ffn_dim=128, layers=2, heads=1, in_channels=36, out_channels=16,
                                           text_dim=TEXT_DIM, has_image_branch=True, image_dim=IMAGE_DIM),
    "wan2.1_flf2v_tiny.safetensors": Variant(dim=128, ffn_dim=128, layers=2, heads=1, in_channels=36, out_channels=16,
                                             text_dim=TEXT_DIM, has_image_branch=True, image_dim=IMAGE_DIM,
                                             has_image_positions=True),
}
"""File name → sizes. Heads are 128 wide as in the released models, so that the files load without a `head_dim`."""

GAINS = {".self_attn.o.": 0.7, ".cross_attn.o.": 1.2, ".ffn.2.": 0.7, "time_projection.": 0.3}
"""Beginnings of what the blocks add; the text's part is large, since its few tokens stand among 512."""
SHARPNESS = 2.5
"""Weight of the norm of the text's keys: attention picks tokens instead of averaging them."""


def dit_tensors(name: str, seed: int) -> dict[str, Tensor]:
    """All tensors of one of `VARIANTS`, bfloat16, official names."""
    variant, draws = VARIANTS[name], Draws(seed, name)
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in WanDiT(variant).state_dict().items()}
    tensors = draws.fill(shapes, lambda key: next((gain for part, gain in GAINS.items() if part in key), 1.0))
    for key, shape in shapes.items():
        if key.endswith("modulation"):
            tensors[key] = draws.normal(key, shape, 0.3)
        if key.endswith("emb_pos"):
            tensors[key] = draws.normal(key, shape, 0.2)
        if ".cross_attn.norm_k." in key:
            tensors[key] *= SHARPNESS
    tensors["patch_embedding.weight"], tensors["head.head.weight"] = _inverse_pair(variant, draws)
    return {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}


def _inverse_pair(variant: Variant, draws: Draws) -> tuple[Tensor, Tensor]:
    """Patch embedding that copies each latent value into dim/64 places with a sign, and the head that reads them."""
    values = variant.out_channels * variant.patch[1] * variant.patch[2]  # 64 latent values a token
    copies = variant.dim // values
    signs = draws.normal("signs", (variant.dim,)).sign()
    reads = torch.zeros(values, variant.dim)  # in the embedding's order: channel, row, column
    for value in range(values):
        for place in range(value * copies, (value + 1) * copies):
            reads[value, place] = signs[place]
    by_channel = reads.T.reshape(variant.dim, variant.out_channels, 1, *variant.patch[1:])
    weight = 0.05 * draws.linear("patch_embedding.weight", (variant.dim, variant.in_channels, *variant.patch))
    weight[:, :16] += by_channel
    if variant.extra_channels == 20:  # 4 of mask, 16 of image latents: flow from noise to those
        weight[:, 20:] -= by_channel
    # The head's order is row, column, channel; mean over the copies.
    head = reads.reshape(variant.out_channels, -1, variant.dim).transpose(0, 1).reshape(values, variant.dim) / copies
    return weight, head
