"""wav2vec2 hidden states at a video's frame rate: the computation, without files.

OmniAvatar's recipe (`scripts/inference.py`, `OmniAvatar/models/wav2vec.py`): normalise the waveform, append zeros,
convolutions at 50 Hz, linear interpolation to the frame rate *before* the transformer, all hidden states. Wan2.2-S2V
interpolates *after* it. The loop over the layers is our own: transformers 4.57 and 5.x return different hidden states
(or none) from the same call.
"""

from fractions import Fraction
import math

from einops import rearrange
from jaxtyping import Float
import torch
from torch import Tensor, nn

from common.timebase import AUDIO_SAMPLE_RATE_HZ, as_fraction

RECIPE = "1"
"""Raise when the numbers of this file change, so that caches are made again."""


def normalise(waveform: Float[Tensor, " T"]) -> Float[Tensor, " T"]:
    """(x - mean) / sqrt(variance + 1e-7) over the whole waveform; silence stays zero."""
    variance, mean = torch.var_mean(waveform, correction=0)
    return (waveform - mean) / torch.sqrt(variance + 1e-7)


def conv_frames(samples: int, kernels: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Frames that the convolutions make of `samples`; 0 when the sound is shorter than their view."""
    for kernel, stride in zip(kernels, strides, strict=True):
        samples = max((samples - kernel) // stride + 1, 0)
    return samples


def receptive_field(kernels: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Samples that one frame of the convolutions sees (400 in released models)."""
    field, step = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * step
        step *= stride
    return field


def padded_length(frames: int, fps: float | int | Fraction, kernels: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Samples needed for `frames` video frames: their whole duration, and never less than the last of them looks at.

    640 * frames at 25 fps, as in OmniAvatar.
    """
    duration = math.ceil(Fraction(frames * AUDIO_SAMPLE_RATE_HZ) / as_fraction(fps))
    last = math.ceil(conv_positions(frames, fps, math.prod(strides))[-1])
    return max(duration, last * math.prod(strides) + receptive_field(kernels, strides))


def conv_positions(frames: int, fps: float | int | Fraction, stride: int) -> list[Fraction]:
    """Where on the axis of the convolutions' frames (50 Hz) each video frame begins: 50 i / fps, exactly."""
    step = Fraction(AUDIO_SAMPLE_RATE_HZ, stride) / as_fraction(fps)
    return [i * step for i in range(frames)]


S2V_ROWS_HZ = 30
"""Rate that Wan2.2-S2V brings the states to, of which it then picks one for each video frame."""


def s2v_positions(frames: range, fps: float | int | Fraction, conv_frames: int) -> list[Fraction | None]:
    """Where Wan2.2-S2V reads the states at 50 Hz for each of `frames`; None beyond the sound, whose row is zero.

    The states are interpolated (ends on ends) to int(conv_frames / 50 * 30) rows, and frame j takes the row
    round(j * 30 / fps), halves to even (at 24 fps the original rounds them by a float that changes with the number of
    frames). Source: Wan2.2 `wan/modules/s2v/audio_encoder.py`.
    """
    rows = max(int(conv_frames / 50 * S2V_ROWS_HZ), 1)
    step = Fraction(conv_frames - 1, rows - 1) if rows > 1 else Fraction(0)
    picked = [round(frame * S2V_ROWS_HZ / as_fraction(fps)) for frame in frames]
    return [row * step if row < rows else None for row in picked]


def states_at(states: Float[Tensor, "C K D"], positions: list[Fraction | None]) -> Float[Tensor, "N K D"]:
    """Linear interpolation of finished states along C at fractional indices; zeros where a position is None."""
    read = at_positions(states.flatten(1)[None], [position or Fraction(0) for position in positions])[0]
    heard = torch.tensor([position is not None for position in positions], device=states.device)
    return (read * heard[:, None].to(read)).unflatten(1, states.shape[1:])


def at_positions(features: Float[Tensor, "B C D"], positions: list[Fraction]) -> Float[Tensor, "B N D"]:
    """Linear interpolation of `features` along C at fractional indices; at whole ones the value itself, exactly."""
    last = features.shape[1] - 1
    below = [min(math.floor(position), last) for position in positions]
    above = [min(index + 1, last) for index in below]
    share = [float(position - index) for position, index in zip(positions, below, strict=True)]
    weight = rearrange(torch.tensor(share, dtype=torch.float64).to(features), "n -> 1 n 1")
    return torch.lerp(features[:, below], features[:, above], weight)


def hidden_states(model: nn.Module, waveform: Float[Tensor, " T"], positions: list[Fraction] | None
                  ) -> Float[Tensor, "N K D"]:
    """All K = layers + 1 hidden states of a transformers `Wav2Vec2Model` for a normalised, padded waveform.

    State 0 is the transformer's input after position convolution (and layer norm, where that comes first); the last one
    is the model's `last_hidden_state`. `positions`: where to read the convolutions' frames; None keeps every one.
    """
    encoder, is_stable = model.encoder, model.config.do_stable_layer_norm
    features = model.feature_extractor(waveform[None]).transpose(1, 2)
    if positions is not None:
        features = at_positions(features, positions)
    hidden = model.feature_projection(features)[0]
    hidden = hidden + encoder.pos_conv_embed(hidden)
    if not is_stable:
        hidden = encoder.layer_norm(hidden)
    states = [hidden]
    for layer in encoder.layers:
        result = layer(hidden)
        hidden = result[0] if isinstance(result, tuple) else result
        states.append(hidden)
    if is_stable:
        states[-1] = encoder.layer_norm(hidden)
    return torch.stack(states, dim=2)[0]
