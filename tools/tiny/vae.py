"""A tiny VAE of the Wan 2.1 layout that keeps the mean colour of every 8x8 pixels and is random beside that.

Three channels carry red, green and blue, three their negatives, one a constant. The constant keeps the RMS norms nearly
linear, and SiLU(x) - SiLU(-x) = x undoes the activations before the last convolutions.
"""

import torch
from torch import Tensor

from tools.tiny.draws import Draws
from wan.modules.vae import LATENT_MEAN, LATENT_STD, Vae
from wan.modules.vae_coders import VaeShape

SHAPE = VaeShape(width=8)
COLOURS, NEGATIVES, CONSTANT = slice(0, 3), slice(3, 6), 6
CARRIED = 7
CONSTANT_VALUE = 3.0
LATENT_GAIN = 1.6
"""Normalised latent of a colour in -1…1."""
GAINS = {".residual.6.": 0.1, ".middle.1.proj.": 0.1}


def vae_tensors(seed: int) -> dict[str, Tensor]:
    """All tensors of `Wan2.1_VAE.pth`, bfloat16, official names."""
    draws = Draws(seed, "Wan2.1_VAE.pth")
    with torch.device("meta"):
        shapes = {key: tuple(tensor.shape) for key, tensor in Vae(SHAPE).state_dict().items()}
    tensors = draws.fill(shapes, lambda key: next((gain for part, gain in GAINS.items() if part in key), 0.5))
    for key, weight in tensors.items():
        if key.endswith(("resample.1.weight", "time_conv.weight", "shortcut.weight")):
            _carry(weight, _kernel(key))
    _ends_of_encoder(tensors)
    _ends_of_decoder(tensors)
    return {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}


def _kernel(key: str) -> Tensor:
    """What a resampling step does to a carried channel."""
    if key.endswith("shortcut.weight"):
        return torch.ones(1, 1, 1)
    if key.startswith("encoder"):
        if "time_conv" in key:
            return torch.tensor([0.0, 0.5, 0.5]).reshape(3, 1, 1)  # the two frames of a pair
        return torch.tensor([0.5, 0.5, 0.0])[:, None] * torch.tensor([0.5, 0.5, 0.0])
    if "time_conv" in key:
        return torch.tensor([0.0, 0.0, 1.0]).reshape(3, 1, 1)  # the present frame, twice
    return torch.tensor([0.25, 0.5, 0.25])[:, None] * torch.tensor([0.25, 0.5, 0.25])


def _carry(weight: Tensor, kernel: Tensor) -> None:
    """Pass the first channels on through a convolution; a doubling of frames has them once for each new frame."""
    width = weight.shape[1]
    for start in range(0, len(weight), width):
        rows = min(CARRIED, len(weight) - start)
        weight[start:start + rows] = 0
        for channel in range(rows):
            weight[start + channel, channel] = kernel


def _ends_of_encoder(tensors: dict[str, Tensor]) -> None:
    first, bias = tensors["encoder.conv1.weight"], tensors["encoder.conv1.bias"]
    first[:CARRIED], bias[:CARRIED] = 0, 0
    for colour in range(3):
        first[colour, colour, -1, 1, 1], first[3 + colour, colour, -1, 1, 1] = 1, -1
    bias[CONSTANT] = CONSTANT_VALUE
    last, bias = tensors["encoder.head.2.weight"], tensors["encoder.head.2.bias"]
    last[:3], bias[:3] = 0, 0
    for colour in range(3):
        last[colour, colour, -1, 1, 1], last[colour, 3 + colour, -1, 1, 1] = 1, -1
    # The published statistics of the latents, so that normalised latents have a deviation near 1.
    mean, std = torch.tensor(LATENT_MEAN), torch.tensor(LATENT_STD)
    tensors["conv1.weight"] = torch.diag(torch.cat([std, torch.ones(16)]))[..., None, None, None]
    tensors["conv1.bias"] = torch.cat([mean, torch.full((16,), -4.0)])
    tensors["conv2.weight"] = torch.diag(1 / std)[..., None, None, None]
    tensors["conv2.bias"] = -mean / std


def _ends_of_decoder(tensors: dict[str, Tensor]) -> None:
    first, bias = tensors["decoder.conv1.weight"], tensors["decoder.conv1.bias"]
    first[:CARRIED], bias[:CARRIED] = 0, 0
    for colour in range(3):
        first[colour, colour, -1, 1, 1] = 1 / LATENT_GAIN
        first[3 + colour, colour, -1, 1, 1] = -1 / LATENT_GAIN
    bias[CONSTANT] = CONSTANT_VALUE
    last, bias = tensors["decoder.head.2.weight"], tensors["decoder.head.2.bias"]
    bias[:] = 0
    for colour in range(3):
        last[colour, :CARRIED] = 0
        last[colour, colour, -1, 1, 1], last[colour, 3 + colour, -1, 1, 1] = 1.1, -1.1
