"""The Wan 2.1 video VAE: video to normalised latents and back, a few frames at a time."""

from collections.abc import Iterator

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn

from common.errors import MediaError
from wan.modules.vae_coders import Decoder, Encoder, VaeShape
from wan.modules.vae_layers import CausalConv3d, PastFrames

LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
"""Mean and deviation of each of the 16 latent channels, published with Wan 2.1 (`wan/modules/vae.py`)."""


class Vae(nn.Module):
    """Causal video VAE: 4n+1 frames of H x W to n+1 latent frames of H/8 x W/8 with 16 channels.

    Memory on the model's device does not grow with the clip's length but for the result: a video may lie on the CPU,
    its frames are moved chunk by chunk. Parameter names are those of the official `Wan2.1_VAE.pth`. Results are
    float32 (float64 where the weights are).
    """

    def __init__(self, shape: VaeShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = Encoder(shape)
        self.conv1 = CausalConv3d(2 * shape.latent_channels, 2 * shape.latent_channels, 1)
        self.conv2 = CausalConv3d(shape.latent_channels, shape.latent_channels, 1)
        self.decoder = Decoder(shape)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.conv1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return self.conv1.weight.dtype

    def encode(self, video: Float[Tensor, "B 3 F H W"]) -> Float[Tensor, "B 16 f h w"]:
        """Normalised latents (mean of the posterior, brought to about mean 0 and deviation 1) of video in -1…1.

        F is 4n+1 and H, W are multiples of 8; MediaError otherwise, since the original drops what is left over.
        """
        mean = torch.cat(list(self.posterior_means(video)), dim=2)
        centre, deviation = self._statistics(mean)
        return (mean - centre) / deviation

    def decode(self, latents: Float[Tensor, "B 16 F H W"]) -> Float[Tensor, "B 3 f h w"]:
        """Video in -1…1 (clamped) of normalised latents: 4(F-1)+1 frames."""
        return torch.cat(list(self.decode_chunks(latents)), dim=2)

    def decode_chunks(self, latents: Float[Tensor, "B 16 F H W"], past: PastFrames | None = None
                      ) -> Iterator[Float[Tensor, "B 3 f h w"]]:
        """The frames of `decode` as they come: one for the first latent frame, then four at a time.

        Calls that share a `past` (begun as `PastFrames()`) go on where the one before ended, as if their latents had
        come in one call.
        """
        centre, deviation = self._statistics(latents)
        for frames in self.decode_means(latents.to(centre.dtype) * deviation + centre, past):
            yield frames.clamp(-1, 1)

    def posterior_means(self, video: Float[Tensor, "B 3 F H W"]) -> Iterator[Float[Tensor, "B 16 1 h w"]]:
        """Mean of the posterior, not normalised, of one latent frame after the other."""
        self._check_video(video)
        past = PastFrames()
        stride = self.shape.temporal_stride
        starts = [0, *range(1, video.shape[2], stride)]
        for start in starts:
            chunk = video[:, :, start:start + (stride if start else 1)]
            moments = self.conv1(self.encoder(chunk.to(self.device, self.dtype), past), past)
            yield self._result(moments.chunk(2, dim=1)[0])

    def decode_means(self, means: Float[Tensor, "B 16 F H W"], past: PastFrames | None = None
                     ) -> Iterator[Float[Tensor, "B 3 f h w"]]:
        """Frames, not clamped, of latents that are not normalised, for one latent frame after the other."""
        past = PastFrames() if past is None else past
        for frame in means.split(1, dim=2):
            yield self._result(self.decoder(self.conv2(frame.to(self.device, self.dtype), past), past))

    def _result(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(self.dtype, torch.float32))

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(self.dtype, torch.float32)
        centre, deviation = torch.tensor([LATENT_MEAN, LATENT_STD], dtype=torch.float64).to(like.device, dtype)
        return rearrange(centre, "c -> c 1 1 1"), rearrange(deviation, "c -> c 1 1 1")

    def _check_video(self, video: Tensor) -> None:
        frames, height, width = video.shape[2:]
        temporal, spatial = self.shape.temporal_stride, self.shape.spatial_stride
        if frames % temporal != 1:
            below = max(frames - 1, 0) // temporal * temporal + 1
            raise MediaError(f"the VAE takes {temporal}n+1 frames, not {frames}; give {below} or {below + temporal}.")
        if height % spatial or width % spatial:
            raise MediaError(f"the VAE takes height and width in multiples of {spatial}, not {height} x {width}.")
