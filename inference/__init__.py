"""From a request to a video: solvers, guidance, the pipeline, and the files that it writes.

The names below are imported when they are first used, so that `--help` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.batch import generate, generate_many
    from inference.latents import decode_latents
    from inference.pipeline import Pipeline, load_pipeline
    from inference.request import GenerationRequest
    from inference.result import GenerationResult

_HOMES = {
    "GenerationRequest": "inference.request",
    "GenerationResult": "inference.result",
    "Pipeline": "inference.pipeline",
    "decode_latents": "inference.latents",
    "generate": "inference.batch",
    "generate_many": "inference.batch",
    "load_pipeline": "inference.pipeline",
}

__all__ = ["GenerationRequest", "GenerationResult", "Pipeline", "decode_latents", "generate", "generate_many",
           "load_pipeline"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'inference' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
