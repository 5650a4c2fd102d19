"""Wan models: tensors in, tensors out.

The loaders are reached as `wan.load_dit` and so on; each is imported when it is first used, so that `import wan` and
`--help` cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wan.encoders.audio import load_audio_encoder
    from wan.encoders.image import load_image_encoder
    from wan.encoders.text import load_text_encoder
    from wan.encoders.vae import load_vae
    from wan.weights.dit import load_dit

_HOMES = {
    "load_dit": "wan.weights.dit",
    "load_vae": "wan.encoders.vae",
    "load_text_encoder": "wan.encoders.text",
    "load_image_encoder": "wan.encoders.image",
    "load_audio_encoder": "wan.encoders.audio",
}

__all__ = ["load_audio_encoder", "load_dit", "load_image_encoder", "load_text_encoder", "load_vae"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wan' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
