"""Layers of the Wan 2.1 video VAE: causal in time, streaming through a cache of past frames.

Module names follow the official file, so its keys fit without a map. Features are `B C T H W`. Every layer that looks
back in time reads and writes `PastFrames`; fed chunk after chunk, it gives what the whole clip at once would give.
Source: Wan2.1 `wan/modules/vae.py`.
"""

from einops import rearrange, repeat
from jaxtyping import Float
import torch
from torch import Tensor, nn
import torch.nn.functional as F

from wan.modules.attention import attend


class PastFrames(dict[nn.Module, Tensor]):
    """The last input frames of every layer that looks back in time; empty before a clip's first frame."""

    def keep(self, layer: nn.Module, frames: Float[Tensor, "B C T H W"]) -> None:
        """Remember `frames` for `layer`; a copy, so that the longer tensor they were cut from is freed."""
        self[layer] = frames.clone()


class CausalConv3d(nn.Conv3d):
    """3D convolution that sees the present and the past, never the future; before the clip stand zeros."""

    def forward(self, x: Float[Tensor, "B C T H W"], past: PastFrames) -> Float[Tensor, "B O T H W"]:
        """Convolve one chunk; `past` holds the chunk before it."""
        look_back = self.kernel_size[0] - 1
        if look_back:
            before = past.get(self)
            # Padding keeps the memory format of `x`, which a tensor of zeros in front would not.
            x = F.pad(x, (0, 0, 0, 0, look_back, 0)) if before is None else torch.cat([before, x], dim=2)
            past.keep(self, x[:, :, -look_back:])
        return super().forward(x)


def causal_conv(channels: int, out_channels: int, kernel: int) -> CausalConv3d:
    """Causal convolution of a cubic kernel that keeps the size."""
    return CausalConv3d(channels, out_channels, kernel, padding=(0, kernel // 2, kernel // 2))


class RMSNorm(nn.Module):
    """x / |x| * sqrt(C) * gamma over the channels of each place; `spatial_axes` 3 for video, 2 for pictures."""

    def __init__(self, channels: int, spatial_axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * spatial_axes))

    def forward(self, x: Float[Tensor, "B C *place"]) -> Float[Tensor, "B C *place"]:
        """Normalise."""
        return F.normalize(x, dim=1) * self.gamma.shape[0] ** 0.5 * self.gamma


class ResidualBlock(nn.Module):
    """Two normalised causal convolutions with a shortcut, 1x1x1 where the width changes."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        # The numbers of the official keys: norm 0, convolution 2, norm 3, convolution 6 (5 is a dropout of rate 0).
        self.residual = nn.ModuleDict({
            "0": RMSNorm(channels), "2": causal_conv(channels, out_channels, 3),
            "3": RMSNorm(out_channels), "6": causal_conv(out_channels, out_channels, 3)})
        self.shortcut = causal_conv(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Float[Tensor, "B C T H W"], past: PastFrames) -> Float[Tensor, "B O T H W"]:
        """One chunk."""
        layers = self.residual
        skipped = x if self.shortcut is None else self.shortcut(x, past)
        x = layers["2"](F.silu(layers["0"](x)), past)
        x = layers["6"](F.silu(layers["3"](x)), past)
        return x + skipped


class FrameAttention(nn.Module):
    """One-head self-attention among the places of each frame by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels, spatial_axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "B C T H W"], past: PastFrames) -> Float[Tensor, "B C T H W"]:
        """One chunk; nothing is looked up in `past`, since frames do not see each other here."""
        batch, _, _, height, _ = x.shape
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        q, k, v = rearrange(self.to_qkv(self.norm(frames)), "n (three c) h w -> three n (h w) 1 c", three=3)
        mixed = self.proj(rearrange(attend(q, k, v), "n (h w) 1 c -> n c h w", h=height))
        return x + rearrange(mixed, "(b t) c h w -> b c t h w", b=batch)


class Downsample(nn.Module):
    """Halve height and width, and with `in_time` also the number of frames (the clip's first frame stays alone)."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if in_time else None

    def forward(self, x: Float[Tensor, "B C T H W"], past: PastFrames) -> Float[Tensor, "B C t h w"]:
        """One chunk: an even number of frames, and one more in the clip's first chunk."""
        batch = x.shape[0]
        frames = F.pad(rearrange(x, "b c t h w -> (b t) c h w"), (0, 1, 0, 1))
        x = rearrange(self.resample["1"](frames), "(b t) c h w -> b c t h w", b=batch)
        if self.time_conv is None:
            return x
        before = past.get(self)
        past.keep(self, x[:, :, -1:])
        if before is not None:
            return self.time_conv(torch.cat([before, x], dim=2))
        return x if x.shape[2] == 1 else torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)


class Upsample(nn.Module):
    """Double height and width and halve the channels; with `in_time` also double all frames but the clip's first."""

    def __init__(self, channels: int, *, in_time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3, padding=1)})
        self.time_conv = CausalConv3d(channels, 2 * channels, (3, 1, 1)) if in_time else None

    def forward(self, x: Float[Tensor, "B C T H W"], past: PastFrames) -> Float[Tensor, "B c t h w"]:
        """One chunk."""
        if self.time_conv is not None:
            x = self._double_frames(self.time_conv, x, past)
        batch = x.shape[0]
        frames = repeat(x, "b c t h w -> (b t) c (h 2) (w 2)")
        return rearrange(self.resample["1"](frames), "(b t) c h w -> b c t h w", b=batch)

    def _double_frames(self, time_conv: CausalConv3d, x: Float[Tensor, "B C T H W"],
                       past: PastFrames) -> Float[Tensor, "B C t H W"]:
        if time_conv in past:
            return self._doubled(time_conv, x, past)
        # The first latent frame is one video frame, and the frames after it do not see it: for them, as in the
        # original, zeros stand before the second latent frame.
        first, rest = x[:, :, :1], x[:, :, 1:]
        past.keep(time_conv, F.pad(x[:, :, :0], (0, 0, 0, 0, time_conv.kernel_size[0] - 1, 0)))
        return first if rest.shape[2] == 0 else torch.cat([first, self._doubled(time_conv, rest, past)], dim=2)

    def _doubled(self, time_conv: CausalConv3d, x: Float[Tensor, "B C T H W"],
                 past: PastFrames) -> Float[Tensor, "B C t H W"]:
        return rearrange(time_conv(x, past), "b (two c) t h w -> b c (t two) h w", two=2)
