"""Decides what a training run reads: every clip with its cached features, or one message with all that is not right."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import CacheError, UserError
from common.features import FeatureSpec
from common.logs import get_logger
from common.tensorfile import read_header
from common.timebase import latent_frame_count
from dataset.header import EntryState
from dataset.index import CacheIndex
from dataset.items import Item
from dataset.jobs import FeatureJob
from dataset.open import Dataset
from dataset.spans import Span
from dataset.store import CacheStore

log = get_logger(__name__)

_SHOWN = 10


@dataclass(frozen=True)
class FeatureEntry:
    """Where a clip's feature lies."""

    spec: FeatureSpec
    path: Path | None
    """None where the source lacks what the feature is made from (a clip without sound)."""
    like: Path | None = None
    """Another entry of the feature, which tells the shapes of the zeros that stand for an absent one."""


@dataclass(frozen=True)
class TrainingItem:
    """One clip with its features; picklable, holds no tensors."""

    item: Item
    span: Span
    entries: tuple[FeatureEntry, ...]
    sizes: Mapping[str, int]
    """Lengths of the letters in feature shapes: F, H, W, N."""
    shown: int | None = None
    """Video frames (4n+1) that are read, from the clip's start; None: all of the span. The span itself, by which
    entries and reference pictures are known, stays."""
    most: int | None = None
    """Samples that a batch of it may hold, where something sets that below the dataset's batch size."""

    @property
    def name(self) -> str:
        """Source and first frame, for messages and logs."""
        return f"{self.item.name}@{self.span.start}"

    @property
    def frames(self) -> int:
        """Video frames that a batch shows."""
        return self.span.frames if self.shown is None else self.shown

    @property
    def batch_size(self) -> int:
        """Samples that one process's batch of it holds."""
        return self.item.batch_size if self.most is None else min(self.item.batch_size, self.most)

    def cut(self, frames: int) -> "TrainingItem":
        """The clip with its first `frames` (4n+1) alone; itself where it has no more."""
        if frames >= self.frames:
            return self
        return replace(self, shown=frames, sizes={**self.sizes, "F": latent_frame_count(frames), "N": frames})

    @property
    def bucket(self) -> tuple[int, int, int, int, tuple[str, ...]]:
        """Clips of equal bucket may stand in one batch: same entry of the TOML, size, length and features."""
        present = tuple(entry.spec.name for entry in self.entries if entry.path is not None)
        return self.item.section_index, self.span.width, self.span.height, self.frames, present


@dataclass(frozen=True)
class _Fault:
    feature: str
    command: str
    name: str
    reason: str


def plan_training(dataset: Dataset, specs: Sequence[FeatureSpec], *, fingerprints: Mapping[str, str] | None = None,
                  require_sources: bool = False) -> list[TrainingItem]:
    """Every clip of `dataset` with its entries of the features `specs`, in the dataset's order.

    What an entry must say: what its source, caption and settings are now, and the encoder. The encoder is the one of
    `fingerprints` (by feature), else the file that made the cache as it is now, else the one that the cache names; one
    for the whole dataset. An item that lacks the medium of a feature (sound, control) trains without it; a feature that
    no item can have is an error. CacheError tells all missing and stale entries and the commands that mend them, and
    sources that cannot be read. `require_sources` also refuses entries whose source is not there to be compared.
    """
    search = _Search(CacheStore(dataset), specs, fingerprints or {}, require_sources)
    plan = [TrainingItem(item, span, tuple(search.entries(item, span)), dataset.sizes(item, span))
            for item in dataset.items for span in item.spans]
    _refuse(dataset, search.faults)
    for spec in specs:
        if spec.name not in search.examples:
            raise CacheError(f"{dataset.path}: no source has what '{spec.name}' is made from (sound: audio = \"clip\" "
                             "or audio_directory; control: control_directory; masks: face_mask_directory, "
                             "lip_mask_directory).")
    if search.unchecked:
        log.info("%d sources are not there; their cached features are used without being compared with them "
                 "(--require_sources refuses).", len(search.unchecked))
    return [replace(one, entries=tuple(replace(entry, like=search.examples[entry.spec.name]) for entry in one.entries))
            for one in plan]


class _Search:
    """Looks at the entries of every clip and collects what is wrong with them."""

    def __init__(self, store: CacheStore, specs: Sequence[FeatureSpec], fingerprints: Mapping[str, str],
                 require_sources: bool) -> None:
        self.faults = [_Fault("", "", one.name, one.reason) for one in store.dataset.failed]
        self.unchecked: set[str] = set()
        self.examples: dict[str, Path] = {}
        self._store = store
        self._require_sources = require_sources
        self._jobs = {spec: _job(store.dataset, spec, fingerprints.get(spec.name)) for spec in specs}

    def entries(self, item: Item, span: Span) -> Iterator[FeatureEntry]:
        """The usable entries of a clip; the others become faults."""
        for spec, job in self._jobs.items():
            if job is None:
                self._fault(spec, item, span, EntryState("missing"))
            elif not all(item.has(need) for need in job.needs):
                yield FeatureEntry(job.spec, None)
            else:
                state = self._store.state(item, span, job)
                if not state.is_usable or (self._require_sources and state.kind == "unchecked"):
                    self._fault(spec, item, span, state)
                    continue
                if state.kind == "unchecked":
                    self.unchecked.add(f"{item.section_index}/{item.key}")
                path = self._store.entry_path(item, span, job.spec)
                self.examples.setdefault(spec.name, path)
                yield FeatureEntry(job.spec, path)

    def _fault(self, spec: FeatureSpec, item: Item, span: Span, state: EntryState) -> None:
        self.faults.append(_Fault(spec.name, spec.command, f"{item.name}@{span.start}", state.reason))


def _job(dataset: Dataset, spec: FeatureSpec, fingerprint: str | None) -> FeatureJob | None:
    """The feature as the cache was made, with the encoder that is expected now; None when it was never made.

    How much is read beside a clip (`halo`) is the reader's matter, not the cache's.
    """
    for folder in dataset.cache_directories:
        record = CacheIndex.load(folder).features.get(spec.name)
        if record is None:
            continue
        job = FeatureJob.from_record(record)
        halos = {tensor.name: tensor.halo for tensor in spec.tensors}
        tensors = tuple(replace(tensor, halo=0 if tensor.span_axis is None else halos.get(tensor.name, 0))
                        for tensor in job.spec.tensors)
        job = replace(job, spec=replace(job.spec, version=spec.version, tensors=tensors))
        return replace(job, fingerprint=fingerprint or job.current_fingerprint() or job.fingerprint)
    return None


def _refuse(dataset: Dataset, faults: Sequence[_Fault]) -> None:
    if not faults:
        return
    groups: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    unread = [f"  - cannot be read: {fault.name}: {fault.reason}" for fault in faults if not fault.feature]
    lines = unread[:_SHOWN]
    if len(unread) > _SHOWN:
        lines.append(f"  - and {len(unread) - _SHOWN} more that cannot be read")
    for fault in faults:
        if fault.feature:
            groups[fault.feature, fault.reason].append(fault.name)
    for (feature, reason), names in sorted(groups.items()):
        names = list(dict.fromkeys(names))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        lines.append(f"  - {feature}: {len(names)} {reason}: {', '.join(names[:_SHOWN])}{more}")
    commands = list(dict.fromkeys(fault.command for fault in faults if fault.command))
    if unread:
        lines.append("Repair those sources or take them out of the dataset.")
    for command in commands:
        lines.append(f"Run: python {command} --dataset_config \"{dataset.path}\" (with the models of this run, and the "
                     "flags that the cache was made with: others make every entry again).")
    raise CacheError("\n".join([f"{dataset.path}: the cache is not what this run needs.", *lines]))


def entry_shapes(path: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype by tensor of an entry. Raises CacheError when the file is damaged."""
    try:
        _, header = read_header(path)
    except UserError as error:
        raise CacheError(str(error)) from error
    return {name: (list(entry["shape"]), str(entry["dtype"])) for name, entry in header.items()}
