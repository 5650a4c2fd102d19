"""Whisper's encoder as LongCat-Video-Avatar 1.5 hears: means of four groups of layers, then the last one, by frame.

No output of the original was at hand. What was decided (audio.md 2.6 describes the rule): the sound is cut into windows
of 30 s, the last one filled with zeros, each made a log-mel spectrogram by transformers' own feature extractor; states
are 0 (the input with positions) … L (the last layer behind the final norm); the groups are states 0 … 7, 8 … 15,
16 … 23, 24 … 31 and 32 for the 32 layers of large-v3, and quarters of L, rounded down, for other depths; the windows'
states, laid end to end at 50 Hz, are read at 50 i / fps for video frame i, linearly between.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Float
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.errors import WeightsError
from common.timebase import AUDIO_SAMPLE_RATE_HZ, frames_in
from wan.audio_presets import GROUPS, AudioPreset
from wan.encoders.audio_base import SoundEncoder
from wan.encoders.audio_features import conv_positions, states_at
from wan.encoders.detect import need
from wan.weights.load import load_into
from wan.weights.source import open_weights

STRIDE = 320
"""Samples from one state to the next: 160 of the spectrogram, halved by the second convolution."""
SHORTEST_SAMPLES = 400
SIZES = ("d_model", "encoder_layers", "encoder_attention_heads", "encoder_ffn_dim", "num_mel_bins",
         "max_source_positions", "activation_function")
PREFERRED = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


class WhisperEncoder(SoundEncoder):
    """Sound to 5 states of every video frame, in windows of 30 s."""

    hears_all_at_once: ClassVar[bool] = False

    def __init__(self, model: nn.Module, preset: AudioPreset) -> None:
        from transformers import WhisperFeatureExtractor

        super().__init__(model, preset, normalises=False)
        config = model.config
        self._positions = int(config.max_source_positions)
        self._mel = WhisperFeatureExtractor(feature_size=config.num_mel_bins,
                                            chunk_length=self._positions * STRIDE // AUDIO_SAMPLE_RATE_HZ)

    @property
    def states(self) -> int:
        """States of a row."""
        return self.preset.count(self.model.config.encoder_layers)

    @property
    def width(self) -> int:
        """Numbers of a state."""
        return self.model.config.d_model

    @property
    def min_samples(self) -> int:
        """Shortest sound at 16 kHz that is taken (25 ms, as of wav2vec2)."""
        return SHORTEST_SAMPLES

    @torch.no_grad()
    def encode(self, waveform: Float[Tensor, " T"], *, sample_rate: int, fps: float | int | Fraction,
               frames: int | None = None) -> Float[Tensor, "F 5 D"]:
        """The 5 states at each of F = ceil(seconds * fps) video frames, or of `frames` of them (silence behind)."""
        waveform = self.mono_16k(waveform, sample_rate)
        wanted = max(frames_in(len(waveform) / AUDIO_SAMPLE_RATE_HZ, fps), 1) if frames is None else frames
        places = conv_positions(wanted, fps, STRIDE)
        samples = max(len(waveform), int(places[-1]) * STRIDE + 1)
        window = self._positions * STRIDE
        waveform = F.pad(waveform, (0, -samples % window + samples - len(waveform)))
        states = torch.cat([grouped(whisper_states(self.model, self._spectrogram(part)))
                            for part in waveform.split(window)])
        return states_at(states, [*places])

    def _spectrogram(self, window: Float[Tensor, " T"]) -> Float[Tensor, "1 M P"]:
        mel = self._mel(window.float().cpu().numpy(), sampling_rate=AUDIO_SAMPLE_RATE_HZ, return_tensors="pt")
        return mel.input_features.to(self.device, self.dtype)


def whisper_states(model: nn.Module, mel: Float[Tensor, "1 M P"]) -> Float[Tensor, "C K D"]:
    """All layers + 1 states of transformers' Whisper encoder, by our own loop: versions differ in what they keep."""
    hidden = F.gelu(model.conv1(mel))
    hidden = F.gelu(model.conv2(hidden)).transpose(1, 2)
    hidden = hidden + model.embed_positions.weight
    states = [hidden]
    for layer in model.layers:
        hidden = hidden + layer.self_attn(hidden_states=layer.self_attn_layer_norm(hidden))[0]
        hidden = hidden + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden))))
        states.append(hidden)
    states[-1] = model.layer_norm(hidden)
    return torch.stack(states, dim=2)[0]


def grouped(states: Float[Tensor, "C K D"]) -> Float[Tensor, "C 5 D"]:
    """Means of the states before the last one in four groups, then the last one."""
    layers = states.shape[1] - 1
    edges = [group * layers // GROUPS for group in range(GROUPS + 1)]
    means = [states[:, first:end].mean(1) for first, end in zip(edges, edges[1:], strict=False)]
    return torch.stack([*means, states[:, -1]], dim=1)


def load_whisper_encoder(folder: Path, config: dict[str, Any], *, dtype: torch.dtype, device: torch.device | str,
                         preset: AudioPreset) -> WhisperEncoder:
    """The encoder of a Whisper model in a Hugging Face folder, frozen; its decoder is not read."""
    model = build_whisper_encoder(config)
    if (layers := len(model.layers)) < GROUPS:
        raise WeightsError(f"{folder}: {layers} layers; --audio_preset whisper keeps means of {GROUPS} groups of them. "
                           f"Give the folder of {preset.released}.")
    with open_weights(folder, preferred=PREFERRED) as source:
        prefix = next((one for one in ("model.encoder.", "encoder.") if f"{one}conv1.weight" in source), "")
        need(source, [f"{prefix}conv1.weight", f"{prefix}embed_positions.weight"], what="a Whisper model",
             remedy=f"Give the folder of {preset.released}.")
        load_into(model, source, {key: prefix + key for key in model.state_dict()}, dtype=dtype, device=device,
                  ignored=lambda key: not key.startswith(prefix) or key.startswith(("decoder.", "proj_out.")))
    return WhisperEncoder(model, preset)


def build_whisper_encoder(config: dict[str, Any]) -> nn.Module:
    """transformers' Whisper encoder on the meta device for the sizes of a config.json."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Model

    sizes = {name: config[name] for name in SIZES if name in config}
    with torch.device("meta"):
        return Model(WhisperConfig(**sizes, attn_implementation="sdpa"))
