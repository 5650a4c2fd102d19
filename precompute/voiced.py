"""How much of a dataset is speech, from the cached voice activity."""

from collections.abc import Iterable
from dataclasses import dataclass

from safetensors import safe_open

from common.logs import get_logger
from dataset.jobs import FeatureJob
from dataset.store import CacheStore
from dataset.work import WorkEntry
from wan.encoders.specs import VAD

log = get_logger(__name__)


@dataclass(frozen=True)
class Voiced:
    """Share of the frames of some entries that is speech."""

    share: float
    seconds: float
    entries: int
    least: str
    """Name of the entry with the smallest share."""
    least_share: float

    def __str__(self) -> str:
        return (f"speech: {self.share:.0%} of {self.seconds:.1f} s in {self.entries} entries; least in {self.least} "
                f"({self.least_share:.0%})")


def voiced_share(entries: Iterable[WorkEntry], store: CacheStore) -> Voiced | None:
    """Over the entries that lie in the cache; None where there are none. Frames of overlapping clips count twice."""
    shares: dict[str, tuple[float, int]] = {}
    seconds = 0.0
    for entry in entries:
        path = store.entry_path(entry.item, entry.span, entry.job.spec)
        if not path.is_file() or not store.state(entry.item, entry.span, entry.job).is_usable:
            continue
        with safe_open(path, framework="pt") as file:
            activity = file.get_tensor(VAD)
        shares[entry.name] = (float(activity.sum()), len(activity))
        seconds += len(activity) / entry.item.fps
    if not shares:
        return None
    least = min(shares, key=lambda name: shares[name][0] / shares[name][1])
    total = sum(frames for _, frames in shares.values())
    return Voiced(sum(spoken for spoken, _ in shares.values()) / total, seconds, len(shares), least,
                  shares[least][0] / shares[least][1])


def tell_voiced(entries: Iterable[WorkEntry], store: CacheStore, jobs: Iterable[FeatureJob]) -> None:
    """One line, where a feature of this run holds voice activity."""
    own = {job.spec.name for job in jobs if any(tensor.name == VAD for tensor in job.spec.tensors)}
    if not own:
        return
    found = voiced_share([entry for entry in entries if entry.job.spec.name in own], store)
    if found is not None:
        log.info("%s", found)
