"""A feature as it is to be cached: its contract, what it is made from, and the encoder that makes it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
import os
from pathlib import Path
from typing import Any, Protocol

from common.features import FeatureSpec, TensorSpec
from common.fingerprint import weights_fingerprint


class CacheableEncoder(Protocol):
    """What a job needs to know of an encoder (`wan.encoders`)."""

    spec: FeatureSpec
    needs: tuple[str, ...]

    def options(self) -> dict[str, str]:
        """Everything but weights and source that changes the numbers."""
        ...

    def weights_paths(self) -> Sequence[Path]:
        """Files that decide the numbers."""
        ...


@dataclass(frozen=True)
class FeatureJob:
    """One feature with all that its entries' headers say about how it was made."""

    spec: FeatureSpec
    needs: tuple[str, ...]
    """Fields of `Media` that it is made from."""
    fingerprint: str
    """Of the encoder's files."""
    options: Mapping[str, str] = field(default_factory=dict)
    weights: tuple[str, ...] = ()
    """Absolute paths of the encoder's files; training looks there whether they have changed since."""

    @classmethod
    def of(cls, encoder: CacheableEncoder) -> "FeatureJob":
        """The job that `encoder` does. Reads its files for the fingerprint; the model need not be loaded."""
        paths = list(encoder.weights_paths())
        return cls(encoder.spec, tuple(encoder.needs), weights_fingerprint(paths), dict(encoder.options()),
                   tuple(os.path.abspath(path) for path in paths))

    def record(self) -> dict[str, Any]:
        """The job as the cache's index keeps it (plain JSON)."""
        return {"spec": asdict(self.spec), "needs": list(self.needs), "fingerprint": self.fingerprint,
                "options": dict(self.options), "weights": list(self.weights)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "FeatureJob":
        """The job back from `record`."""
        spec = dict(record["spec"])
        spec["keyed_by"] = tuple(spec["keyed_by"])
        spec["tensors"] = tuple(TensorSpec(**tensor) for tensor in spec["tensors"])
        return cls(FeatureSpec(**spec), tuple(record["needs"]), record["fingerprint"], dict(record["options"]),
                   tuple(record["weights"]))

    def current_fingerprint(self) -> str | None:
        """Fingerprint of the encoder's files as they are now; None when they are not (all) there."""
        if not self.weights or not all(os.path.exists(path) for path in self.weights):
            return None
        return weights_fingerprint(self.weights)
