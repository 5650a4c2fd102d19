"""What a generation gives: pixels, latents, the sound, and the settings that make it again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from einops import rearrange
from jaxtyping import Float, UInt8
import numpy as np
import torch
from torch import Tensor

from common.media.sound import Sound
from inference.segments import SoundTiming

if TYPE_CHECKING:
    from inference.request import GenerationRequest


@dataclass(frozen=True)
class GenerationResult:
    """One generated clip."""

    video: Float[Tensor, "3 F H W"] | None
    """Pixels in -1…1, float32 on the CPU; only the frames that are written. None where a long video went chunk by chunk
    to its file."""
    latents: Float[Tensor, "16 T h w"] | None
    """All latents, float32 on the CPU; None for several chunks, whose latents are not one stream."""
    sound: Sound | None
    """The driving sound, heard `sound_lead_s` seconds after the first frame begins."""
    fps: float
    settings: "GenerationRequest"
    """Settings with every default filled in."""
    record: Mapping[str, Any]
    """What is written as JSON beside the video."""
    path: Path | None = None
    """Where the result was written; None when the request names no place."""

    @property
    def sound_lead_s(self) -> float:
        """Seconds of silence in front of the sound in the written video."""
        settings = self.settings
        return SoundTiming(settings.audio_lead or 0.0, int(settings.omniavatar_lead)).mux_lead_s(self.fps)

    @property
    def frames(self) -> UInt8[np.ndarray, "F H W 3"]:
        """The video as 8-bit RGB frames."""
        assert self.video is not None, "a long video is read from its file"
        return to_frames(self.video)

    def each_frame(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """The same frames one by one, so that no second copy of the clip is held."""
        assert self.video is not None, "a long video is read from its file"
        for index in range(self.video.shape[1]):
            yield to_frames(self.video[:, index:index + 1])[0]


def to_frames(video: Float[Tensor, "3 F H W"]) -> UInt8[np.ndarray, "F H W 3"]:
    """-1…1 to 0…255, rounded."""
    levels = rearrange(video, "c f h w -> f h w c").float().add(1).mul(127.5).round_().clamp_(0, 255)
    return levels.to(torch.uint8).cpu().numpy()
