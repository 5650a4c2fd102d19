"""What is to be encoded: every entry of every feature with its state, shared out among processes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.errors import ConfigError
from common.speakers import SPEAKER_REGIONS
from dataset.header import EntryState
from dataset.items import Item
from dataset.jobs import FeatureJob
from dataset.open import Dataset
from dataset.spans import Span
from dataset.store import CacheStore

_REMEDIES = {
    "sound": "Set audio = \"clip\" or audio_directory in an entry, or audio_path in its list.",
    "control": "Set control_directory in an entry, or control_path in its list.",
    "region_masks": "Set face_mask_directory or lip_mask_directory in an entry, or face_mask_path or lip_mask_path in "
                    "its list.",
    SPEAKER_REGIONS: "Set speaker_boxes or speaker_mask_directories in an entry, or audio_paths in its list.",
}


@dataclass(frozen=True)
class WorkEntry:
    """One entry of the cache. `span` is None where the feature is made from the source as a whole."""

    item: Item
    span: Span | None
    job: FeatureJob
    state: EntryState
    number: int = 0
    """Of the item in the dataset; work is shared out by it."""

    @property
    def name(self) -> str:
        """Item, clip and feature, for messages."""
        clip = "" if self.span is None else f" frames {self.span.start}-{self.span.end - 1}"
        return f"{self.item.name}{clip} {self.job.spec.name}"


def work_list(dataset: Dataset, jobs: Sequence[FeatureJob]) -> list[WorkEntry]:
    """Every entry that the dataset needs of the features, fresh ones too; all entries of an item stand together.

    Items that lack a medium of a feature (no sound, no control) have no entry of it. ConfigError when no item at all
    has what a feature needs.
    """
    store = CacheStore(dataset)
    for job in jobs:
        for need in job.needs:
            if not any(item.has(need) for item in dataset.items):
                raise ConfigError(f"{dataset.path}: '{job.spec.name}' needs {need}, and no source has it. "
                                  f"{_REMEDIES.get(need, '')}".rstrip())
    entries: list[WorkEntry] = []
    for number, item in enumerate(dataset.items):
        for job in jobs:
            if all(item.has(need) for need in job.needs):
                spans = item.spans if "span" in job.spec.keyed_by else (None,)
                entries += [WorkEntry(item, span, job, store.state(item, span, job), number) for span in spans]
    return entries


def to_do(entries: Iterable[WorkEntry], *, force: bool = False) -> list[WorkEntry]:
    """The entries that must be made: missing and stale ones, with `force` all whose media are there.

    An entry whose source is absent cannot be made again; when it is stale it stays in the list, so that it is told.
    """
    return [entry for entry in entries
            if not entry.state.is_usable or (force and entry.state.kind != "unchecked")]


def share(entries: Sequence[WorkEntry], rank: int, world_size: int) -> list[WorkEntry]:
    """The part of the process `rank` of `world_size`: whole items, so that each is read once.

    By the item's place in the dataset and not in `entries`: another process may already have made some of them.
    """
    return [entry for entry in entries if entry.number % world_size == rank]


def by_clip(entries: Iterable[WorkEntry]) -> list[list[WorkEntry]]:
    """Entries that are made from one reading of the media: same item and clip."""
    groups: dict[tuple[int, Span | None], list[WorkEntry]] = {}
    for entry in entries:
        groups.setdefault((entry.number, entry.span), []).append(entry)
    return list(groups.values())
