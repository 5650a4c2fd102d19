"""What the audio encoders share: a checked mono waveform at 16 kHz, at the loudness of their preset."""

from fractions import Fraction
from typing import ClassVar, Protocol

from jaxtyping import Float
import torch
from torch import Tensor, nn

from common.errors import MediaError
from common.timebase import AUDIO_SAMPLE_RATE_HZ
from wan.audio_presets import AudioPreset

NOT_MEASURABLE_LUFS = 100.0
"""Beyond this the measured loudness is that of silence, and the sound is left as it is (MultiTalk's rule)."""
LOUDNESS_BLOCK_S = 0.4
"""Shorter sounds have no loudness by ITU-R BS.1770 and are left as they are."""


class HearingModel(Protocol):
    """An audio encoder as features and generation use it."""

    preset: AudioPreset
    normalises: bool
    hears_all_at_once: bool
    """Whether memory grows with the length of the sound."""

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in and returned."""
        ...

    @property
    def states(self) -> int:
        """States of a row."""
        ...

    @property
    def width(self) -> int:
        """Numbers of a state."""
        ...

    def encode(self, waveform: Float[Tensor, " T"], *, sample_rate: int, fps: float | int | Fraction,
               frames: int | None = None) -> Float[Tensor, "F K D"]:
        """Rows of a whole sound."""
        ...


class SoundEncoder:
    """Base of the audio encoders: a frozen model and the preset that says what is kept of it."""

    hears_all_at_once: ClassVar[bool] = True

    def __init__(self, model: nn.Module, preset: AudioPreset, *, normalises: bool) -> None:
        self.model = model
        self.preset = preset
        self.normalises = normalises

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in and returned."""
        return next(self.model.parameters()).dtype

    @property
    def min_samples(self) -> int:
        """Shortest sound at 16 kHz that can be encoded."""
        raise NotImplementedError

    def mono_16k(self, waveform: Tensor, sample_rate: int) -> Float[Tensor, " T"]:
        """The waveform at 16 kHz and at the preset's loudness, in float32 or better, on the model's device.

        MediaError for more than one channel, numbers that are not finite, and sounds that are too short.
        """
        if waveform.ndim != 1:
            raise MediaError(f"the audio encoder takes one channel, not a tensor of shape {list(waveform.shape)}.")
        if not waveform.isfinite().all():
            raise MediaError("the sound holds NaN or infinity; decode it again.")
        if sample_rate != AUDIO_SAMPLE_RATE_HZ:
            from common.media.sound import Sound

            waveform = torch.from_numpy(Sound(waveform[None].float().cpu().numpy(), sample_rate).mono_16k)
        if len(waveform) < self.min_samples:
            raise MediaError(f"the sound has {len(waveform)} samples at 16 kHz; the audio encoder needs "
                             f"{self.min_samples} (25 ms). Give a longer sound.")
        if self.preset.lufs is not None:
            waveform = at_loudness(waveform, self.preset.lufs)
        return waveform.to(self.device, torch.promote_types(self.dtype, torch.float32))


def at_loudness(waveform: Float[Tensor, " T"], lufs: float) -> Float[Tensor, " T"]:
    """The sound at 16 kHz brought to `lufs` by one gain (integrated loudness, ITU-R BS.1770, by pyloudnorm).

    Silence, and sounds too short to have a loudness, stay as they are. Samples beyond full scale are not clipped.
    Source: MultiTalk `generate_multitalk.py`, loudness_norm.
    """
    if len(waveform) <= LOUDNESS_BLOCK_S * AUDIO_SAMPLE_RATE_HZ:
        return waveform
    import pyloudnorm

    found = float(pyloudnorm.Meter(AUDIO_SAMPLE_RATE_HZ).integrated_loudness(waveform.cpu().double().numpy()))
    return waveform if abs(found) > NOT_MEASURABLE_LUFS else waveform * 10 ** ((lufs - found) / 20)
