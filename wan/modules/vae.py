"""The Wan 2.1 video VAE: video to normalised latents and back, a few frames at a time."""

from collections.abc import Iterator
from typing import Literal

from einops import rearrange
from jaxtyping import Float, Shaped
import torch
from torch import Tensor, nn

from common.errors import MediaError
from common.media.picture import from_levels
from wan.modules.vae_coders import Decoder, Encoder, VaeShape
from wan.modules.vae_layers import CausalConv3d, PastFrames

LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
"""Mean and deviation of each of the 16 latent channels, published with Wan 2.1 (`wan/modules/vae.py`)."""


Task = Literal["encode", "decode"]


def cut_into_chunks(count: int, most: int, *, is_begun: bool = False) -> Iterator[range]:
    """Latent frames 0…count cut into runs of at most `most`, about equal, so that few different lengths occur.

    The clip's first latent frame stands alone unless the clip `is_begun`: it is one video frame, pictures are nothing
    else, and in decoding it is to be seen soon.
    """
    start = 0 if is_begun else 1
    if not is_begun:
        yield range(min(count, 1))
    calls = -(-(count - start) // most)
    length = -(-(count - start) // max(calls, 1))
    for first in range(start, count, max(length, 1)):
        yield range(first, min(first + length, count))


class Vae(nn.Module):
    """Causal video VAE: 4n+1 frames of H x W to n+1 latent frames of H/8 x W/8 with 16 channels.

    Memory on the model's device does not grow with the clip's length but for the result: a video may lie on the CPU,
    its frames are moved chunk by chunk. A chunk is one latent frame; `wan.memory.vae_speed` makes it more. Parameter
    names are those of the official `Wan2.1_VAE.pth`. Results are float32 (float64 where the weights are).
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

    def encode(self, video: Shaped[Tensor, "B 3 F H W"]) -> Float[Tensor, "B 16 f h w"]:
        """Normalised latents (mean of the posterior, brought to about mean 0 and deviation 1) of video in -1…1.

        uint8 video is in 0…255 and brought to -1…1 chunk by chunk, on the model's device. F is 4n+1 and H, W are
        multiples of 8; MediaError otherwise, since the original drops what is left over.
        """
        mean = torch.cat(list(self.posterior_means(video)), dim=2)
        centre, deviation = self._statistics(mean)
        return (mean - centre) / deviation

    def decode(self, latents: Float[Tensor, "B 16 F H W"]) -> Float[Tensor, "B 3 f h w"]:
        """Video in -1…1 (clamped) of normalised latents: 4(F-1)+1 frames."""
        return torch.cat(list(self.decode_chunks(latents)), dim=2)

    def decode_chunks(self, latents: Float[Tensor, "B 16 F H W"], past: PastFrames | None = None
                      ) -> Iterator[Float[Tensor, "B 3 f h w"]]:
        """The frames of `decode` as they come: one for the first latent frame, then those of a chunk at a time.

        Calls that share a `past` (begun as `PastFrames()`) go on where the one before ended, as if their latents had
        come in one call.
        """
        centre, deviation = self._statistics(latents)
        for frames in self.decode_means(latents.to(centre.dtype) * deviation + centre, past):
            yield frames.clamp(-1, 1)

    def posterior_means(self, video: Shaped[Tensor, "B 3 F H W"]) -> Iterator[Float[Tensor, "B 16 f h w"]]:
        """Mean of the posterior, not normalised, of one chunk after the other; the first is the first frame alone."""
        self._check_video(video)
        past, stride = PastFrames(), self.shape.temporal_stride
        batch, _, frames, height, width = video.shape
        most = self.chunk_latents("encode", batch, height, width)
        for latents in cut_into_chunks((frames - 1) // stride + 1, most):
            start, stop = (stride * edge - stride + 1 for edge in (latents.start, latents.stop))
            yield self._result(self.encode_chunk(self._pixels(video[:, :, max(start, 0):stop]), past))

    def decode_means(self, means: Float[Tensor, "B 16 F H W"], past: PastFrames | None = None
                     ) -> Iterator[Float[Tensor, "B 3 f h w"]]:
        """Frames, not clamped, of latents that are not normalised, for one chunk of latent frames after the other."""
        past, stride = PastFrames() if past is None else past, self.shape.spatial_stride
        batch, _, count, height, width = means.shape
        most = self.chunk_latents("decode", batch, height * stride, width * stride)
        for chunk in cut_into_chunks(count, most, is_begun=bool(past)):
            latents = means[:, :, chunk.start:chunk.stop].to(self.device, self.dtype)
            yield self._result(self.decode_chunk(latents, past))

    def encode_chunk(self, video: Float[Tensor, "B 3 F H W"], past: PastFrames) -> Float[Tensor, "B 16 f h w"]:
        """Means of the posterior of a chunk: 4n frames, and one more where it is the clip's first."""
        return self.conv1(self.encoder(video, past), past).chunk(2, dim=1)[0]

    def decode_chunk(self, means: Float[Tensor, "B 16 F H W"], past: PastFrames) -> Float[Tensor, "B 3 f h w"]:
        """Frames of a chunk of any number of latent frames."""
        return self.decoder(self.conv2(means, past), past)

    def chunk_latents(self, task: Task, batch: int, height: int, width: int) -> int:
        """The most latent frames of one call for videos of this size in pixels; one is the original's way."""
        return 1

    def _pixels(self, chunk: Tensor) -> Tensor:
        if chunk.dtype == torch.uint8:
            chunk = from_levels(chunk.to(self.device).contiguous())
        return chunk.to(self.device, self.dtype)

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
