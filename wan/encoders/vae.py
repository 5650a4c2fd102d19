"""Loading the Wan 2.1 VAE from the official, ComfyUI's or the diffusers layout."""

import os
import re

import torch

from common.errors import WeightsError
from wan.encoders.detect import count_blocks, need
from wan.modules.vae import LATENT_MEAN, Vae
from wan.modules.vae_coders import VaeShape
from wan.weights.load import load_into
from wan.weights.source import WeightsSource, open_weights

PREFERRED = ("Wan2.1_VAE.pth", "wan_2.1_vae*.safetensors", "vae/diffusion_pytorch_model*.safetensors", "*VAE*.pth")
REMEDY = "Give Wan2.1_VAE.pth of any Wan 2.1 download, or ComfyUI's wan_2.1_vae.safetensors."

DIFFUSERS_RULES = tuple((re.compile(pattern), new) for pattern, new in (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
))
"""Official name -> name in diffusers' `AutoencoderKLWan`, applied in order; the decoder's flat list comes on top."""


def load_vae(path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32,
             device: torch.device | str = "cpu") -> Vae:
    """The VAE in `path` (a file or a folder that holds it), frozen; its sizes are read from the weights.

    Raises WeightsError when the file is no Wan 2.1 VAE, or holds it only in part (missing and unexpected are listed).
    """
    with open_weights(path, preferred=PREFERRED) as source:
        vae, names = vae_on_meta(source)
        return load_into(vae, source, names, dtype=dtype, device=device)


def vae_on_meta(source: WeightsSource) -> tuple[Vae, dict[str, str]]:
    """The empty VAE that `source` holds the weights of, and {name in it: name in the source}."""
    is_diffusers = "encoder.conv_in.weight" in source
    shape = _detect(source, is_diffusers)
    with torch.device("meta"):
        vae = Vae(shape)
    return vae, {key: diffusers_key(key) if is_diffusers else key for key in vae.state_dict()}


def diffusers_key(key: str) -> str:
    """Name in diffusers' `AutoencoderKLWan` of the tensor that the official file calls `key`."""
    for pattern, new in DIFFUSERS_RULES:
        key = pattern.sub(new, key)
    # Each decoder stage has three residual blocks and a resampling step; diffusers nests them.
    return re.sub(r"^decoder\.upsamples\.(\d+)\.", _nested, key)


def _nested(match: re.Match[str]) -> str:
    stage, step = divmod(int(match[1]), 4)
    return f"decoder.up_blocks.{stage}." + ("upsamplers.0." if step == 3 else f"resnets.{step}.")


def _detect(source: WeightsSource, is_diffusers: bool) -> VaeShape:
    def name(key: str) -> str:
        return diffusers_key(key) if is_diffusers else key

    _refuse_wan22(source, name("conv2.weight"))
    known_by = [name(key) for key in ("conv2.weight", "encoder.conv1.weight", "decoder.head.2.weight")]
    need(source, known_by, what="a Wan 2.1 VAE", remedy=REMEDY)
    width, colours = source.shape(known_by[1])[:2]
    stages: list[list[int]] = [[]]
    halves_time: list[bool] = []
    for step in range(count_blocks(source, name("encoder.downsamples."))):
        prefix = f"encoder.downsamples.{step}"
        if name(f"{prefix}.resample.1.weight") in source:
            halves_time.append(name(f"{prefix}.time_conv.weight") in source)
            stages.append([])
        elif (key := name(f"{prefix}.residual.6.weight")) in source:
            stages[-1].append(source.shape(key)[0])
    latent_channels = source.shape(known_by[0])[0]
    if latent_channels != len(LATENT_MEAN):
        raise WeightsError(f"{source.path}: a VAE of {latent_channels} latent channels; Wan 2.1's has "
                           f"{len(LATENT_MEAN)}. {REMEDY}")
    return VaeShape(
        width=width, latent_channels=latent_channels, colours=colours, halves_time=tuple(halves_time),
        multipliers=tuple(max(stage, default=width) // width for stage in stages),
        residual_blocks=max(len(stage) for stage in stages))


def _refuse_wan22(source: WeightsSource, latent_convolution: str) -> None:
    is_nested = any(".downsamples.0.downsamples." in key or ".down_blocks.0.resnets." in key for key in source)
    if is_nested or (latent_convolution in source and source.shape(latent_convolution)[0] == 48):
        raise WeightsError(f"{source.path}: the VAE of Wan 2.2 (48 channels, stride 4x16x16), which only TI2V-5B uses "
                           f"and which is not supported yet. {REMEDY}")
