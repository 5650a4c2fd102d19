"""Training: noise levels, objective, loss, optimisers, schedules, and the loop around them.

``training.train(config)`` runs a training; it is imported when it is first used, so that settings cost nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.build import train

__all__ = ["train"]


def __getattr__(name: str) -> Any:
    if name != "train":
        raise AttributeError(f"module 'training' has no attribute '{name}'")
    from training.build import train

    return train
