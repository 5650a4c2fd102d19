"""The encoders of the named features, each with a model that is loaded only when something is to be encoded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.dtypes import parse_dtype
from common.errors import ConfigError, nearest
from common.speakers import speaker_of
from wan.audio_presets import OMNIAVATAR, AudioPreset, Scope
from wan.encoders.base import Encoder as FeatureEncoder
from wan.encoders.features.audio import ChunkPadding
from wan.encoders.features.voice import VoiceEncoder
from wan.encoders.registry import FEATURES
from wan.encoders.specs import Given, NullText

CLIP_HEADS = 16
"""Attention heads of ViT-H, the one CLIP tower that Wan models use; no file tells them."""


@dataclass(frozen=True)
class AudioOptions:
    """How the sound is heard, and what is stored of it beside the states."""

    preset: AudioPreset = OMNIAVATAR
    scope: Scope | None = None
    """None: the preset's own."""
    padding: ChunkPadding | None = None
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFiles:
    """Where the encoders' weights are, and how they are run. Only those of the asked features are needed."""

    vae: Path | None = None
    t5: Path | None = None
    clip: Path | None = None
    wav2vec: Path | None = None
    tokenizer: Path | None = None
    vae_dtype: str = "float32"
    vae_compile: bool = False
    t5_dtype: str = "bfloat16"
    fp8_t5: bool = False
    """Whether umT5's linears are held as float8."""
    clip_dtype: str = "float32"
    device: str = "cpu"
    given: Given = "first"
    """Pictures that an image-to-video model is given."""
    audio: AudioOptions = AudioOptions()
    null_text: NullText = "empty"
    """What stands for a caption that training drops."""


class LazyModel:
    """Stands for a model until one of its methods is asked for; known facts are told without loading it.

    A second run over fresh caches asks for nothing but facts, and so loads nothing.
    """

    def __init__(self, load: Callable[[], Any], **facts: Any) -> None:
        self._load = load
        self._facts = facts
        self._loaded: Any = None

    def __getattr__(self, name: str) -> Any:
        if name in self._facts:
            return self._facts[name]
        if self._loaded is None:
            self._loaded = self._load()
        return getattr(self._loaded, name)


def build_encoders(features: Sequence[str], files: ModelFiles) -> list[FeatureEncoder]:
    """One encoder a feature; those of one model share it. ConfigError lists unknown features and missing weights."""
    registered = {name: "audio" if speaker_of(name) else name for name in features}
    problems = [f"unknown feature '{name}'{nearest(name, FEATURES)}. Known: {', '.join(FEATURES)}."
                for name in registered.values() if name not in FEATURES]
    kinds = {FEATURES[name].model for name in registered.values() if name in FEATURES}
    for kind, (flag, _) in _FLAGS.items():
        path = getattr(files, flag)
        wanting = [name for name, base in registered.items() if base in FEATURES and FEATURES[base].model == kind]
        if kind in kinds and path is None:
            problems.append(f"--{flag} is needed for {', '.join(wanting)}.")
        elif kind in kinds and not Path(path).exists():
            problems.append(f"--{flag} {path}: no such file or folder.")
    if problems:
        raise ConfigError(" ".join(problems))
    models = {kind: _FLAGS[kind][1](files) for kind in sorted(kind for kind in kinds if kind is not None)}
    return [_encoder(name, models, files) for name in features]


def _encoder(name: str, models: Mapping[Any, LazyModel], files: ModelFiles) -> FeatureEncoder:
    if (speaker := speaker_of(name) or 1) > 1:
        return VoiceEncoder(_encoder("audio", models, files), speaker)
    encoder = FEATURES[name]
    options: dict[str, Any] = {}
    if name == "audio":
        options |= {"scope": files.audio.scope, "padding": files.audio.padding, "more": files.audio.more}
    if name == "text":
        options["null"] = files.null_text
    if name in ("image_latents", "clip"):
        options["given"] = files.given
    build: Callable[..., Any] = encoder
    if encoder.model is None:
        return build(**options)
    return build(models[encoder.model], getattr(files, _FLAGS[encoder.model][0]), **options)


def _vae(files: ModelFiles) -> LazyModel:
    dtype = parse_dtype(files.vae_dtype)

    def load() -> Any:
        from wan import load_vae
        from wan.memory.vae_speed import speed_up, usual_speed

        vae = load_vae(_there(files.vae), dtype=dtype, device=files.device)
        return speed_up(vae, usual_speed(files.device, dtype, compiled=files.vae_compile, many=True))
    return LazyModel(load, dtype=dtype)


def _text_encoder(files: ModelFiles) -> LazyModel:
    from wan.encoders.text import tokenizer_for
    from wan.memory.fp8 import Fp8Settings

    dtype, fp8 = parse_dtype(files.t5_dtype), Fp8Settings() if files.fp8_t5 else None

    def load() -> Any:
        from wan import load_text_encoder

        return load_text_encoder(_there(files.t5), tokenizer=files.tokenizer, dtype=dtype, device=files.device,
                                 fp8=fp8)
    return LazyModel(load, dtype=dtype, fp8=fp8, tokenizer=tokenizer_for(_there(files.t5), files.tokenizer))


def _image_encoder(files: ModelFiles) -> LazyModel:
    dtype = parse_dtype(files.clip_dtype)

    def load() -> Any:
        from wan import load_image_encoder

        return load_image_encoder(_there(files.clip), heads=CLIP_HEADS, dtype=dtype, device=files.device)
    return LazyModel(load, dtype=dtype, heads=CLIP_HEADS)


def _audio_encoder(files: ModelFiles) -> LazyModel:
    import torch

    from wan.encoders.audio import audio_facts

    def load() -> Any:
        from wan import load_audio_encoder

        return load_audio_encoder(_there(files.wav2vec), dtype=torch.float32, device=files.device,
                                  preset=files.audio.preset)
    return LazyModel(load, dtype=torch.float32, **audio_facts(_there(files.wav2vec), files.audio.preset))


def _there(path: Path | None) -> Path:
    assert path is not None, "build_encoders has asked for it"
    return path


_FLAGS: dict[str, tuple[str, Callable[[ModelFiles], LazyModel]]] = {
    "vae": ("vae", _vae),
    "text_encoder": ("t5", _text_encoder),
    "image_encoder": ("clip", _image_encoder),
    "audio_encoder": ("wav2vec", _audio_encoder),
}
"""Kind of model -> the flag that names its weights, and what makes it."""
