"""Encoder and decoder of the Wan 2.1 video VAE, built from the layers of `vae_layers`."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
import torch.nn.functional as F

from wan.modules.vae_layers import (
    Downsample,
    FrameAttention,
    PastFrames,
    ResidualBlock,
    RMSNorm,
    Upsample,
    causal_conv,
)


@dataclass(frozen=True)
class VaeShape:
    """Sizes of a Wan 2.1 VAE, all of them readable from the keys and shapes of a file; the defaults are the release."""

    width: int = 96
    """Channels of the finest stage."""
    latent_channels: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Width of each stage, as a multiple of `width`, from the finest to the coarsest."""
    residual_blocks: int = 2
    """Residual blocks of an encoder stage; a decoder stage has one more."""
    halves_time: tuple[bool, ...] = (False, True, True)
    """Whether the step after each encoder stage halves the frame count; the decoder mirrors it."""
    colours: int = 3

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of every stage, finest first."""
        return tuple(self.width * multiplier for multiplier in self.multipliers)

    @property
    def spatial_stride(self) -> int:
        """Pixels along one side of a latent place."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def temporal_stride(self) -> int:
        """Video frames of a latent frame (but of the first, which is one video frame)."""
        return 2 ** sum(self.halves_time)


class Middle(nn.ModuleList):
    """Residual block, attention within frames, residual block."""

    def __init__(self, channels: int) -> None:
        before, after = ResidualBlock(channels, channels), ResidualBlock(channels, channels)
        super().__init__([before, FrameAttention(channels), after])


class Head(nn.ModuleDict):
    """Norm, SiLU, causal convolution; the names are those of the official keys."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__({"0": RMSNorm(channels), "2": causal_conv(channels, out_channels, 3)})

    def forward(self, x: Float[Tensor, "B C T H W"], past: PastFrames) -> Float[Tensor, "B O T H W"]:
        """One chunk."""
        return self["2"](F.silu(self["0"](x)), past)


class Encoder(nn.Module):
    """Video to the mean and the logarithm of the variance of its latents (before the last 1x1x1 convolution)."""

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        widths = shape.stage_widths
        steps: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for _ in range(shape.residual_blocks):
                steps.append(ResidualBlock(before, width))
                before = width
            if stage < len(widths) - 1:
                steps.append(Downsample(width, in_time=shape.halves_time[stage]))
        self.conv1 = causal_conv(shape.colours, widths[0], 3)
        self.downsamples = nn.ModuleList(steps)
        self.middle = Middle(widths[-1])
        self.head = Head(widths[-1], 2 * shape.latent_channels)

    def forward(self, x: Float[Tensor, "B 3 T H W"], past: PastFrames) -> Float[Tensor, "B Z t h w"]:
        """One chunk: the clip's first frame alone, then `temporal_stride` frames at a time."""
        x = self.conv1(x, past)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, past)
        return self.head(x, past)


class Decoder(nn.Module):
    """Latents (after the first 1x1x1 convolution) to video."""

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        widths = shape.stage_widths[::-1]
        steps: list[nn.Module] = []
        before = widths[0]
        for stage, width in enumerate(widths):
            for _ in range(shape.residual_blocks + 1):
                steps.append(ResidualBlock(before, width))
                before = width
            if stage < len(widths) - 1:
                steps.append(Upsample(width, in_time=shape.halves_time[::-1][stage]))
                before = width // 2
        self.conv1 = causal_conv(shape.latent_channels, widths[0], 3)
        self.middle = Middle(widths[0])
        self.upsamples = nn.ModuleList(steps)
        self.head = Head(widths[-1], shape.colours)

    def forward(self, x: Float[Tensor, "B Z T H W"], past: PastFrames) -> Float[Tensor, "B 3 t h w"]:
        """One latent frame."""
        x = self.conv1(x, past)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, past)
        return self.head(x, past)
