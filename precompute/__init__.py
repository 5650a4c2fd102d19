"""Media to cached features: `precompute.run(features, dataset_config, models=…)`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precompute.caching import run
    from precompute.models import ModelFiles

__all__ = ["ModelFiles", "run"]


def __getattr__(name: str) -> Any:
    if name == "run":
        from precompute.caching import run

        return run
    if name == "ModelFiles":
        from precompute.models import ModelFiles

        return ModelFiles
    raise AttributeError(f"module 'precompute' has no attribute '{name}'")
