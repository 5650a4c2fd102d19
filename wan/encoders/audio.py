"""The wav2vec2 audio encoder: loading a Hugging Face folder on to transformers' class, and encoding a waveform."""

from fractions import Fraction
import math
import os
from pathlib import Path
from typing import Any

from jaxtyping import Float
import torch
from torch import Tensor, nn
import torch.nn.functional as F

from common.errors import WeightsError
from common.timebase import AUDIO_SAMPLE_RATE_HZ, frames_in
from wan.audio_presets import OMNIAVATAR, PRESETS, AudioPreset
from wan.encoders.audio_base import SoundEncoder
from wan.encoders.audio_features import (
    conv_frames,
    conv_positions,
    hidden_states,
    normalise,
    padded_length,
    receptive_field,
    s2v_positions,
    states_at,
)
from wan.encoders.detect import need
from wan.weights.files import read_json
from wan.weights.load import load_into
from wan.weights.source import WeightsSource, open_weights

PREFERRED = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
REMEDY = "Give the folder of facebook/wav2vec2-base-960h (config.json and model.safetensors or pytorch_model.bin)."
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
         "feat_extract_norm", "feat_extract_activation", "conv_dim", "conv_stride", "conv_kernel", "conv_bias",
         "num_conv_pos_embeddings", "num_conv_pos_embedding_groups", "do_stable_layer_norm")
"""What of config.json makes the model; the rest is about training."""
NOT_NEEDED = ("masked_spec_embed", "lm_head.", "quantizer.", "project_q.", "project_hid.", "projector.", "classifier.",
              "adapter.", "dropout")
"""Parts that only training or other tasks use. Many files lack `masked_spec_embed`; it is never asked for."""


class AudioEncoder(SoundEncoder):
    """Sound to the hidden states of wav2vec2 that the preset keeps, one row for each video frame (`fantasy`: 50 Hz)."""

    def __init__(self, model: nn.Module, *, normalises: bool = True, preset: AudioPreset = OMNIAVATAR) -> None:
        super().__init__(model, preset, normalises=normalises)
        self._kernels = tuple(model.config.conv_kernel)
        self._strides = tuple(model.config.conv_stride)

    @property
    def states(self) -> int:
        """States of a row; of all presets but `omniavatar` and `s2v` fewer than layers + 1."""
        return self.preset.count(self.model.config.num_hidden_layers)

    @property
    def width(self) -> int:
        """Numbers of a hidden state."""
        return self.model.config.hidden_size

    @property
    def min_samples(self) -> int:
        """Shortest sound at 16 kHz that can be encoded (400 samples, 25 ms)."""
        return receptive_field(self._kernels, self._strides)

    @torch.no_grad()
    def encode(self, waveform: Float[Tensor, " T"], *, sample_rate: int, fps: float | int | Fraction,
               frames: int | None = None) -> Float[Tensor, "F K D"]:
        """The kept states at each of F = ceil(seconds * fps) video frames, or of `frames` of them.

        The given waveform is brought to the preset's loudness and normalised as a whole. Where the frame rate comes
        before the transformer, zeros are then appended up to the duration of the frames, as OmniAvatar does; `frames`
        beyond the sound are silence, and with fewer of them the transformer still hears all. Where it comes after (S2V)
        nothing is appended and rows beyond the sound are zero. Without frames (`fantasy`) there is a row every 20 ms.
        Other rates than 16 kHz are resampled (soxr HQ). MediaError for less than 25 ms, or numbers that are not finite.
        """
        waveform = self.prepared(waveform, sample_rate)
        heard = max(frames_in(len(waveform) / AUDIO_SAMPLE_RATE_HZ, fps), 1)
        wanted = heard if frames is None else frames
        if self.preset.rate == "before":
            rows = max(heard, wanted)
            missing = padded_length(rows, fps, self._kernels, self._strides) - len(waveform)
            waveform = F.pad(waveform, (0, max(missing, 0))).to(self.dtype)
            positions = conv_positions(rows, fps, math.prod(self._strides))
            return self._kept(hidden_states(self.model, waveform, positions)[:wanted])
        states = self._kept(hidden_states(self.model, waveform.to(self.dtype), None))
        return states if self.preset.rate == "none" else states_at(states, s2v_positions(range(wanted), fps,
                                                                                         len(states)))

    @torch.no_grad()
    def encode_part(self, prepared: Float[Tensor, " T"], frames: range, fps: float) -> Float[Tensor, "M K D"]:
        """States at some of the frames of a long sound (`prepared` as a whole), of which only that part is heard.

        It is cut on the grid of the convolutions, at any frame rate. Group norm and attention reach over the part.
        """
        stride = math.prod(self._strides)
        is_before = self.preset.rate == "before"
        places: list[Fraction | None] = (
            [*conv_positions(frames.stop, fps, stride)[frames.start:]] if is_before
            else s2v_positions(frames, fps, conv_frames(len(prepared), self._kernels, self._strides)))
        known = [place for place in places if place is not None]
        if not known:
            return torch.zeros(len(frames), self.states, self.width)
        first = math.floor(known[0])
        begin = first * stride
        end = math.ceil(known[-1]) * stride + self.min_samples
        end = (max(math.ceil(frames.stop * AUDIO_SAMPLE_RATE_HZ / fps), end) if is_before
               else min(end + stride - 1, len(prepared)))
        window = prepared[begin:end]
        window = F.pad(window, (0, end - begin - len(window))).to(self.device, self.dtype)
        local = [None if place is None else place - first for place in places]
        if is_before:
            states = hidden_states(self.model, window, [place for place in local if place is not None])
            return self._kept(states).float().cpu()
        return states_at(self._kept(hidden_states(self.model, window, None)), local).float().cpu()

    def prepared(self, waveform: Tensor, sample_rate: int) -> Float[Tensor, " T"]:
        """The waveform as the model hears it: 16 kHz, the preset's loudness, normalised as a whole."""
        waveform = self.mono_16k(waveform, sample_rate)
        return normalise(waveform) if self.normalises else waveform

    def _kept(self, states: Float[Tensor, "N K D"]) -> Float[Tensor, "N K D"]:
        """The last ones of all states: every preset leaves out only what comes first."""
        return states[:, states.shape[1] - self.states:]


def load_audio_encoder(folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32,
                       device: torch.device | str = "cpu", preset: AudioPreset = OMNIAVATAR) -> Any:
    """The `AudioEncoder` (or `WhisperEncoder`) of a Hugging Face `folder`, frozen. float32 is what OmniAvatar uses.

    Raises WeightsError when config.json is missing or of another model than `preset` hears with, or weights and config
    do not fit.
    """
    folder = Path(folder)
    config = read_config(folder, preset)
    if preset.model == "whisper":
        from wan.encoders.whisper import load_whisper_encoder

        return load_whisper_encoder(folder, config, dtype=dtype, device=device, preset=preset)
    model = build_audio_encoder(config)
    with open_weights(folder, preferred=PREFERRED) as source:
        prefix = "wav2vec2." if any(key.startswith("wav2vec2.") for key in source) else ""
        need(source, [f"{prefix}feature_extractor.conv_layers.0.conv.weight"], what="a wav2vec2 model", remedy=REMEDY)
        names = {key: _origin(source, prefix + key) for key in model.state_dict()}
        load_into(model, source, names, dtype=dtype, device=device,
                  ignored=lambda key: key.removeprefix(prefix).startswith(NOT_NEEDED))
    return AudioEncoder(model, normalises=_normalises(folder), preset=preset)


def audio_facts(folder: str | os.PathLike[str], preset: AudioPreset = OMNIAVATAR) -> dict[str, Any]:
    """What a folder's config tells of its encoder, weights unread: `states`, `width`, `normalises`, `preset`."""
    config = read_config(Path(folder), preset)
    if preset.model == "whisper":
        layers, width, normalises = int(config.get("encoder_layers", 4)), int(config.get("d_model", 384)), False
    else:
        layers, width = int(config.get("num_hidden_layers", 12)), int(config.get("hidden_size", 768))
        normalises = _normalises(Path(folder))
    return {"states": preset.count(layers), "width": width, "normalises": normalises, "preset": preset}


def build_audio_encoder(config: dict[str, Any]) -> nn.Module:
    """transformers' wav2vec2 on the meta device for the sizes of a config.json."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {name: config[name] for name in SIZES if name in config}
    with torch.device("meta"):
        # Without masking there is no `masked_spec_embed`, which files of fine-tuned models lack.
        return Wav2Vec2Model(Wav2Vec2Config(**sizes, mask_time_prob=0.0, mask_feature_prob=0.0, layerdrop=0.0,
                                            attn_implementation="sdpa"))


def read_config(folder: Path, preset: AudioPreset) -> dict[str, Any]:
    """The folder's config.json; WeightsError where it is missing or of another kind of model than the preset's."""
    if not folder.is_dir():
        raise WeightsError(f"{folder}: the audio encoder is a folder with config.json and the weights, and this is "
                           f"{'a file' if folder.exists() else 'not there'}. {REMEDY}")
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: no config.json. {REMEDY}")
    config = _read_settings(folder / "config.json")
    if (kind := config.get("model_type")) != preset.model:
        other = next((one.name for one in PRESETS.values() if one.model == kind), None)
        remedy = (f"Give --audio_preset {other}, or the folder of {preset.released}." if other
                  else REMEDY if preset.model == "wav2vec2" else f"Give the folder of {preset.released}.")
        raise WeightsError(f"{folder}: config.json is of a model of type '{kind}', not '{preset.model}'. {remedy}")
    return config


def _normalises(folder: Path) -> bool:
    """Whether the model was trained on normalised sound, as preprocessor_config.json says; true where there is none."""
    path = folder / "preprocessor_config.json"
    settings = _read_settings(path) if path.is_file() else {}
    rate = settings.get("sampling_rate", AUDIO_SAMPLE_RATE_HZ)
    if rate != AUDIO_SAMPLE_RATE_HZ:
        raise WeightsError(f"{path}: the model hears sound at {rate} Hz, not {AUDIO_SAMPLE_RATE_HZ}. {REMEDY}")
    return bool(settings.get("do_normalize", True))


def _read_settings(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: holds a {type(content).__name__}, not settings. Download it again.")
    return content


def _origin(source: WeightsSource, key: str) -> str:
    """Name in the file: the weight norm of the position convolution has an older spelling."""
    if key in source:
        return key
    return key.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v")
