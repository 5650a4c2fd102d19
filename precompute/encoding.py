"""Encodes entries: clips come from a loader, go through the encoders, and are written while the next are encoded."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from common.devices import Meter
from common.logs import get_logger
from common.media.item import Media
from common.progress import progress
from dataset.store import CacheStore
from dataset.work import WorkEntry, by_clip
from precompute.loading import ClipRequest, Loaded, open_loader, read
from precompute.writing import EntryWriter, Made, raise_if_fatal, reason
from wan.encoders.base import BatchEncoder
from wan.encoders.base import Encoder as FeatureEncoder

log = get_logger(__name__)

PICTURES = frozenset({"frames", "control", "reference"})
"""Media that take long enough to read that workers help."""

Group = list[WorkEntry]
"""The entries of one clip, made from one reading of its media."""


@dataclass
class Summary:
    """What one run of a cache script did, in entries."""

    encoded: int = 0
    fresh: int = 0
    unchecked: int = 0
    """Fresh, but the source is not there to compare."""
    stale: int = 0
    """Of the encoded ones: entries that were there and told of something else."""
    failed: list[str] = field(default_factory=list)

    def line(self, features: Sequence[str]) -> str:
        """The one line at the end."""
        unchecked = f" ({self.unchecked} not checked: source absent)" if self.unchecked else ""
        return (f"{', '.join(features)}: {self.encoded} encoded, {self.fresh + self.unchecked} fresh{unchecked}, "
                f"{self.stale} stale (encoded again), {len(self.failed)} failed")


@dataclass(frozen=True)
class Handling:
    """How clips go through the encoders; the entries are the same but for rounding in batches."""

    num_workers: int = 0
    """Processes that decode pictures; 0: none but this one."""
    batch_size: int = 1
    """Clips of one size and length, or captions of about one length, that are encoded together."""


ONE_BY_ONE = Handling()
"""No workers, no batches."""


def encode_entries(entries: list[WorkEntry], store: CacheStore, encoders: Mapping[str, FeatureEncoder], device: str,
                   handling: Handling) -> Summary:
    """Encode and store all `entries`. One that fails costs only itself; a full disk or wrong weights are raised."""
    summary = Summary()
    if not entries:
        return summary
    store.sweep()
    meter = Meter(device)
    batches = cut_into_batches(by_clip(entries), handling.batch_size)
    requests = [_request(group) for batch in batches for group in batch]
    visual = sum(bool(PICTURES & request.needs) for request in requests)
    bar = progress(total=len(entries), desc="encoding", unit="entry")

    def count(results: Iterable[tuple[WorkEntry, str]]) -> None:
        for entry, failure in results:
            bar.update()
            if failure:
                summary.failed.append(f"{entry.name}: {failure}")
                bar.write(f"failed: {summary.failed[-1]}")
            else:
                summary.encoded += 1
                summary.stale += entry.state.kind == "stale"

    with (open_loader(min(handling.num_workers, visual), pinned=device.startswith("cuda")) as loader,
          EntryWriter(store) as writer):
        loaded = loader.load(requests)
        for batch in batches:
            for entry, made in _encode([(group, next(loaded)) for group in batch], encoders):
                writer.put(entry, made)
            count(writer.done())
        count(writer.done(wait=True))
    bar.close()
    log.info(f"[time] {summary.encoded} entries in {meter.line()}")
    return summary


def cut_into_batches(groups: Sequence[Group], size: int) -> list[list[Group]]:
    """Clips that are encoded together: neighbours of the same features, size and length; captions by their length."""
    if size == 1:
        return [[group] for group in groups]
    captions = [group for group in groups if _request(group).needs == {"caption"}]
    # The longest first: what does not fit into memory is met at once.
    captions.sort(key=lambda group: -len(group[0].item.caption))
    others = [group for group in groups if _request(group).needs != {"caption"}]
    batches: list[list[Group]] = []
    for group in [*others, *captions]:
        if batches and len(batches[-1]) < size and _form(batches[-1][-1]) == _form(group):
            batches[-1].append(group)
        else:
            batches.append([group])
    return batches


def _form(group: Group) -> tuple[object, ...]:
    span = group[0].span
    return (*(entry.job.spec.name for entry in group), None if span is None else (span.frames, span.size))


def _request(group: Group) -> ClipRequest:
    return ClipRequest(group[0].item, group[0].span, frozenset(need for entry in group for need in entry.job.needs))


def _encode(batch: Sequence[tuple[Group, Loaded]], encoders: Mapping[str, FeatureEncoder]
            ) -> Iterator[tuple[WorkEntry, Made]]:
    readable: list[tuple[Group, Media]] = []
    for group, loaded in batch:
        if isinstance(loaded, Media):
            readable.append((group, loaded))
            continue
        raise_if_fatal(loaded)
        if len({entry.job.needs for entry in group}) == 1:
            yield from ((entry, loaded) for entry in group)
            continue
        for entry in group:  # a broken mask leaves the frames as they are
            yield from _encode([([entry], read(_request([entry])))], encoders)
    if readable:
        for column in zip(*(group for group, _ in readable), strict=True):
            media = [media for _, media in readable]
            yield from zip(column, _encode_feature(encoders[column[0].job.spec.name], media), strict=True)


def _encode_feature(encoder: FeatureEncoder, media: Sequence[Media]) -> list[Made]:
    """One feature of several clips, together where that is possible, else one by one."""
    if len(media) > 1 and isinstance(encoder, BatchEncoder):
        try:
            return list(encoder.encode_batch(media))
        except Exception as error:  # noqa: BLE001 - one of them may be at fault, or memory is short
            raise_if_fatal(error)
            log.warning("%d clips could not be encoded together (%s); one by one", len(media), reason(error))
    return [_attempt(lambda one=one: encoder.encode(one)) for one in media]  # type: ignore[misc]


def _attempt(encode: Callable[[], dict[str, Tensor]]) -> Made:
    try:
        return encode()
    except Exception as error:  # noqa: BLE001 - encoders raise anything at odd input, and it costs only this entry
        raise_if_fatal(error)
        return error
