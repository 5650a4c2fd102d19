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

from common.errors import MediaError, WeightsError
from common.timebase import AUDIO_SAMPLE_RATE_HZ, frames_in
from wan.encoders.audio_features import conv_positions, hidden_states, normalise, padded_length, receptive_field
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


class AudioEncoder:
    """Sound to all hidden states of wav2vec2, one row for each video frame."""

    def __init__(self, model: nn.Module, *, normalises: bool = True) -> None:
        self.model = model
        self.normalises = normalises
        self._kernels = tuple(model.config.conv_kernel)
        self._strides = tuple(model.config.conv_stride)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in and returned."""
        return next(self.model.parameters()).dtype

    @property
    def states(self) -> int:
        """Hidden states of a frame: layers + 1."""
        return self.model.config.num_hidden_layers + 1

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
        """All K hidden states at each of F = ceil(seconds * fps) video frames, or of `frames` of them.

        The given waveform is normalised as a whole, then zeros are appended up to the duration of the frames, as
        OmniAvatar does; `frames` beyond the sound are silence, and with fewer of them the transformer still hears all.
        Other rates than 16 kHz are resampled (soxr HQ). MediaError for less than 25 ms, or numbers that are not finite.
        """
        waveform = self._prepared(waveform, sample_rate)
        heard = max(frames_in(len(waveform) / AUDIO_SAMPLE_RATE_HZ, fps), 1)
        wanted = heard if frames is None else frames
        rows = max(heard, wanted)
        missing = padded_length(rows, fps, self._kernels, self._strides) - len(waveform)
        waveform = F.pad(waveform, (0, max(missing, 0))).to(self.dtype)
        positions = conv_positions(rows, fps, math.prod(self._strides))
        return hidden_states(self.model, waveform, positions)[:wanted]

    def _prepared(self, waveform: Tensor, sample_rate: int) -> Tensor:
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
        waveform = waveform.to(self.device, torch.promote_types(self.dtype, torch.float32))
        return normalise(waveform) if self.normalises else waveform


def load_audio_encoder(folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32,
                       device: torch.device | str = "cpu") -> AudioEncoder:
    """The wav2vec2 model in a Hugging Face `folder`, frozen. float32 is what OmniAvatar uses.

    Raises WeightsError when config.json is missing or of another model, or weights and config do not fit.
    """
    folder = Path(folder)
    config = _read_config(folder)
    model = build_audio_encoder(config)
    with open_weights(folder, preferred=PREFERRED) as source:
        prefix = "wav2vec2." if any(key.startswith("wav2vec2.") for key in source) else ""
        need(source, [f"{prefix}feature_extractor.conv_layers.0.conv.weight"], what="a wav2vec2 model", remedy=REMEDY)
        names = {key: _origin(source, prefix + key) for key in model.state_dict()}
        load_into(model, source, names, dtype=dtype, device=device,
                  ignored=lambda key: key.removeprefix(prefix).startswith(NOT_NEEDED))
    return AudioEncoder(model, normalises=_normalises(folder))


def audio_facts(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What a folder's config tells of its AudioEncoder without loading weights: `states` and `normalises`."""
    config = _read_config(Path(folder))
    return {"states": int(config.get("num_hidden_layers", 12)) + 1, "normalises": _normalises(Path(folder))}


def build_audio_encoder(config: dict[str, Any]) -> nn.Module:
    """transformers' wav2vec2 on the meta device for the sizes of a config.json."""
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    sizes = {name: config[name] for name in SIZES if name in config}
    with torch.device("meta"):
        # Without masking there is no `masked_spec_embed`, which files of fine-tuned models lack.
        return Wav2Vec2Model(Wav2Vec2Config(**sizes, mask_time_prob=0.0, mask_feature_prob=0.0, layerdrop=0.0,
                                            attn_implementation="sdpa"))


def _read_config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise WeightsError(f"{folder}: the audio encoder is a folder with config.json and the weights, and this is "
                           f"{'a file' if folder.exists() else 'not there'}. {REMEDY}")
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: no config.json. {REMEDY}")
    config = _read_settings(folder / "config.json")
    if config.get("model_type") != "wav2vec2":
        kind = config.get("model_type")
        raise WeightsError(f"{folder}: config.json is of a model of type '{kind}', not 'wav2vec2'. {REMEDY}")
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
