"""What the cache sees of a model: a feature's contract, the media it wants, its options, and one item at a time."""

from collections.abc import Sequence
import os
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from common.errors import MediaError
from common.features import FeatureSpec
from common.media.item import Media
from wan.weights.shards import find_files

ModelKind = Literal["vae", "text_encoder", "image_encoder", "audio_encoder"]
"""Which of the loaders of `wan` makes the model that an encoder needs."""
T = TypeVar("T")


class Encoder(Protocol):
    """Cache-side face of a model; the same objects make the features of a generation."""

    spec: FeatureSpec
    needs: tuple[str, ...]
    """Fields of `Media` that must be there."""
    model: ClassVar[ModelKind | None]
    """None where it needs no model."""

    def options(self) -> dict[str, str]:
        """Everything but weights and source that changes the numbers, as text for the cache header."""
        ...

    def weights_paths(self) -> tuple[Path, ...]:
        """Files whose content decides the numbers; the store fingerprints them."""
        ...

    def encode(self, media: Media) -> dict[str, Tensor]:
        """Feature of one item, as the spec says, on the CPU. MediaError when a needed medium is absent."""
        ...


@runtime_checkable
class BatchEncoder(Protocol):
    """An encoder that takes several items at once."""

    def encode_batch(self, media: Sequence[Media]) -> list[dict[str, Tensor]]:
        """What `encode` gives for each; pictures must be of one size and length."""
        ...


class ModelEncoder:
    """What the encoders of this package share: the files of their model, and asking media for what they need."""

    model: ClassVar[ModelKind | None]
    spec: FeatureSpec
    needs: tuple[str, ...]
    preferred: ClassVar[tuple[str, ...]] = ()
    """Names by which the model's file is found in a folder."""
    settings_files: ClassVar[tuple[str, ...]] = ()
    """Files beside the weights in a folder that decide the numbers too."""

    def __init__(self, weights: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
        paths = [weights] if isinstance(weights, str | os.PathLike) else list(weights)
        self._weights = tuple(Path(path) for path in paths)

    def weights_paths(self) -> tuple[Path, ...]:
        """Files whose content decides the numbers: of a folder with several models, those of this one alone."""
        files: list[Path] = []
        for path in self._weights:
            files += find_files(path, self.preferred).files
            files += [path / name for name in self.settings_files if (path / name).is_file()]
        return tuple(files)

    def required(self, value: T | None, name: str) -> T:
        """`value` itself, or MediaError saying that the feature needs `name`."""
        if value is None:
            raise MediaError(f"feature '{self.spec.name}' needs {name}, and this item has none.")
        return value
