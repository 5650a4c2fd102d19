"""The VAE's convolutions in a form that tensor cores run well at few channels; the numbers stay the same.

A causal 3x3x3 convolution is a 3x3 convolution over pictures in which the channels of the present and the two frames
before it stand side by side, filled up with zeros to a multiple of eight. Only training uses this: with
`torch.compile` it made 50 million pixels a second on an H200 where the plain form made 36, and 19 uncompiled.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from wan.modules.vae import Vae
from wan.modules.vae_layers import CausalConv3d, PastFrames

MULTIPLE = 8


class PictureConv(CausalConv3d):
    """`CausalConv3d` by one convolution over pictures; made of one by changing its class."""

    def forward(self, x: Tensor, past: PastFrames) -> Tensor:
        """One chunk ``B C T H W``."""
        depth, out, channels = self.kernel_size[0], self.out_channels, self.kernel_size[0] * self.in_channels
        before = past.get(self)
        if before is None:
            before = x.new_zeros(x.shape[0], x.shape[1], depth - 1, *x.shape[3:])
        x = torch.cat([before, x], dim=2)
        past.keep(self, x[:, :, 1 - depth:])
        batch, _, frames, height, width = x.shape
        frames -= depth - 1
        beside = torch.stack([x[:, :, k:k + frames] for k in range(depth)], 1).permute(0, 3, 1, 2, 4, 5)
        beside = beside.reshape(batch * frames, channels, height, width)
        more_in, more_out = -channels % MULTIPLE, -out % MULTIPLE
        beside = F.pad(beside, (0, 0, 0, 0, 0, more_in)).contiguous(memory_format=torch.channels_last)
        weight = self.weight.permute(0, 2, 1, 3, 4).reshape(out, channels, *self.kernel_size[1:])
        weight = F.pad(weight, (0, 0, 0, 0, 0, more_in, 0, more_out)).contiguous(memory_format=torch.channels_last)
        assert self.bias is not None
        made = F.conv2d(beside, weight, F.pad(self.bias, (0, more_out)), padding=self.padding[1:])[:, :out]
        return made.reshape(batch, frames, out, height, width).permute(0, 2, 1, 3, 4)


def use_picture_convs(vae: Vae, on: bool = True) -> None:
    """Change all causal convolutions with a cubic kernel of 3, or back."""
    for module in vae.modules():
        if isinstance(module, CausalConv3d) and module.kernel_size == (3, 3, 3):
            module.__class__ = PictureConv if on else CausalConv3d


def encode_means(vae: Vae, video: Tensor) -> Tensor:
    """As `Vae.posterior_means`, in two chunks: what streams in fours gives the same in one piece, and faster."""
    past = PastFrames()
    chunks = (vae.conv1(vae.encoder(chunk, past), past) for chunk in (video[:, :, :1], video[:, :, 1:]))
    return torch.cat([chunk.chunk(2, dim=1)[0] for chunk in chunks], dim=2)


def decode_means(vae: Vae, means: Tensor) -> Tensor:
    """As `Vae.decode_means`, in two chunks."""
    past = PastFrames()
    return torch.cat([vae.decoder(vae.conv2(chunk, past), past) for chunk in (means[:, :, :1], means[:, :, 1:])], dim=2)

