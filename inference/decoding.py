"""Latents to frames: chunk by chunk, the next one decoded while the last is written, the clip held once."""

from collections.abc import Iterator

from jaxtyping import Float, UInt8
import numpy as np
import torch
from torch import Tensor

from inference.result import to_frames
from wan.modules.vae import Vae
from wan.modules.vae_layers import PastFrames


@torch.no_grad()
def decoded_chunks(vae: Vae, latents: Float[Tensor, "16 T h w"], past: PastFrames | None = None
                   ) -> Iterator[Float[Tensor, "3 F H W"]]:
    """Frames in -1…1, float32 on the CPU, as they are decoded; on the VAE's device lies a chunk at a time.

    On CUDA the device is at work on the next chunk when one is handed out. `past` as for `Vae.decode_chunks`.
    """
    before: _Copy | None = None
    for chunk in vae.decode_chunks(latents[None], past):
        if not chunk.is_cuda:
            yield chunk[0].float()
            continue
        copy = _Copy(chunk[0])
        if before is not None:
            yield before.whole()
        before = copy
    if before is not None:
        yield before.whole()


class _Copy:
    """A tensor on its way from a CUDA device, behind the work that makes it and before the work that follows."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = torch.empty(tensor.shape, pin_memory=True)
        self._host.copy_(tensor, non_blocking=True)
        self._done = torch.cuda.Event()
        self._done.record(torch.cuda.current_stream(tensor.device))

    def whole(self) -> Tensor:
        """The copy, once it is there."""
        self._done.synchronize()
        return self._host


class Decoding:
    """A clip that is being decoded: its frames one by one, or all of them; each is held once.

    `shown`: frames that are wanted, from the first; None means all.
    """

    def __init__(self, vae: Vae, latents: Float[Tensor, "16 T h w"], shown: int | None = None) -> None:
        _, count, height, width = latents.shape
        stride = vae.shape.spatial_stride
        total = vae.shape.temporal_stride * (count - 1) + 1
        self.video: Float[Tensor, "3 F H W"] = torch.empty(
            vae.shape.colours, total if shown is None else min(shown, total), height * stride, width * stride)
        """Pixels in -1…1, float32 on the CPU; only what has been decoded is filled in."""
        self.is_done = False
        self._parts = self._filled(decoded_chunks(vae, latents))

    def frames(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The frames that are not decoded yet, as 8-bit RGB, while they come."""
        for part in self._parts:
            yield from to_frames(part)

    def finish(self) -> Float[Tensor, "3 F H W"]:
        """Decode what is left; the whole video."""
        for _ in self._parts:
            pass
        return self.video

    def _filled(self, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        start = 0
        for chunk in chunks:
            part = self.video[:, start:start + chunk.shape[1]]
            part.copy_(chunk[:, :part.shape[1]])
            yield part
            start += part.shape[1]
            if start == self.video.shape[1]:
                break
        self.is_done = True


def decode_with(vae: Vae, latents: Float[Tensor, "16 T h w"]) -> Float[Tensor, "3 F H W"]:
    """Pixels in -1…1, float32 on the CPU; on the VAE's device lie only a few frames at a time."""
    return Decoding(vae, latents).finish()
