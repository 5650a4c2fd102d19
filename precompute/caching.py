"""For the named features: find what is missing or stale, encode it, store it, and say what happened."""

from collections.abc import Sequence
from dataclasses import dataclass, field
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from common.devices import Meter
from common.errors import UserError
from common.logs import get_logger
from common.progress import progress
from common.speakers import SPEAKER_REGIONS, audio_feature
from dataset.config import load_dataset_config
from dataset.jobs import FeatureJob
from dataset.media import load_media
from dataset.open import Dataset, open_dataset
from dataset.store import CacheStore
from dataset.work import WorkEntry, by_clip, share, to_do, work_list
from precompute.models import ModelFiles, build_encoders
from precompute.processes import gather, process_index
from precompute.voiced import tell_voiced

if TYPE_CHECKING:
    from dataset.schema import AudioShort
    from wan.encoders.base import Encoder as FeatureEncoder

log = get_logger(__name__)

FATAL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def run(features: Sequence[str], dataset_config: str | os.PathLike[str], *, models: ModelFiles, force: bool = False,
        prune: bool = False, audio_short: "AudioShort | None" = None) -> Summary:
    """Bring the caches of `features` up to date for a dataset TOML.

    Several processes (`accelerate launch`) share the items. Everything that can be told before a model loads is told
    first: ConfigError for the TOML, missing weights or unknown features. A source that cannot be read, or an item
    that an encoder refuses, is listed in the returned summary and costs only itself.
    """
    encoders = build_encoders(features, models)
    dataset = open_dataset(load_dataset_config(dataset_config), audio_short=audio_short)
    _tell(dataset)
    names = _with_companions(features, dataset)
    if len(names) > len(features):
        encoders = build_encoders(names, models)
    jobs = [FeatureJob.of(encoder) for encoder in encoders]
    entries = work_list(dataset, jobs)
    store = CacheStore(dataset)
    # The others are remembered with their first new entry, when their model has proved to be one.
    unfinished = {entry.job.spec.name for entry in to_do(entries, force=force)}
    store.remember(job for job in jobs if job.spec.name not in unfinished)
    rank, world_size = process_index()
    mine = share(entries, rank, world_size)
    summary = _encode(to_do(mine, force=force), store, dict(zip(names, encoders, strict=True)), models.device)
    kinds = [entry.state.kind for entry in mine]
    redone = {id(entry) for entry in to_do(mine, force=force)} if force else set()
    summary.fresh = sum(e.state.kind == "fresh" and id(e) not in redone for e in mine)
    summary.unchecked = kinds.count("unchecked")
    total = _join(gather(summary))
    total.failed = [f"{one.name}: {one.reason}" for one in dataset.failed] + total.failed
    if rank == 0:
        _finish(total, names, store, jobs, prune)
        tell_voiced(entries, store, jobs)
    return total


def exit_code(summary: Summary) -> int:
    """1 when anything failed, else 0."""
    return 1 if summary.failed else 0


def _with_companions(features: Sequence[str], dataset: Dataset) -> list[str]:
    """The features, and what belongs to them in this dataset.

    With latents come those of the reference picture of talking clips, which audio conditions read, and what masks and
    boxes say; with the first speaker's sound those of the others.
    """
    found = list(features)
    if "latents" in features:
        if any(item.sound is not None or item.side("reference") is not None or item.reference_rule != "first"
               for item in dataset.items):
            found.append("reference_latents")
        found += [name for name in ("region_masks", SPEAKER_REGIONS) if any(item.has(name) for item in dataset.items)]
    if "audio" in features:
        found += [audio_feature(speaker) for speaker in range(2, dataset.speakers + 1)]
    return list(dict.fromkeys(found))


def _tell(dataset: Dataset) -> None:
    for note in dataset.notes:
        log.info(note)
    for one in dataset.dropped:
        log.info(f"left out: {one.name}: {one.reason}")
    clips = sum(len(item.spans) for item in dataset.items)
    log.info(f"{dataset.path}: {len(dataset.items)} sources, {clips} clips")


def _encode(entries: list[WorkEntry], store: CacheStore, encoders: "dict[str, FeatureEncoder]", device: str) -> Summary:
    summary = Summary()
    if not entries:
        return summary
    store.sweep()
    meter = Meter(device)
    bar = progress(total=len(entries), desc="encoding", unit="entry")
    for group in by_clip(entries):
        for entry, failure in _encode_clip(group, store, encoders):
            bar.update()
            if failure:
                summary.failed.append(f"{entry.name}: {failure}")
                bar.write(f"failed: {summary.failed[-1]}")
            else:
                summary.encoded += 1
                summary.stale += entry.state.kind == "stale"
    bar.close()
    log.info(f"[time] {summary.encoded} entries in {meter.line()}")
    return summary


def _encode_clip(group: list[WorkEntry], store: CacheStore, encoders: "dict[str, FeatureEncoder]"
                 ) -> list[tuple[WorkEntry, str]]:
    """Encode and store the entries of one clip, read once; each with its failure, or an empty text."""
    first = group[0]
    needs = {need for entry in group for need in entry.job.needs}
    try:
        media = load_media(first.item, first.span, needs)
    except Exception as error:  # noqa: BLE001 - decoders raise anything at a damaged file, and it costs only this clip
        _raise_if_fatal(error)
        if len({entry.job.needs for entry in group}) > 1:  # a broken mask leaves the frames as they are
            return [result for entry in group for result in _encode_clip([entry], store, encoders)]
        return [(entry, _reason(error)) for entry in group]
    results = []
    for entry in group:
        try:
            store.write(entry.item, entry.span, entry.job, encoders[entry.job.spec.name].encode(media))
            results.append((entry, ""))
        except Exception as error:  # noqa: BLE001 - as above
            _raise_if_fatal(error)
            results.append((entry, _reason(error)))
    return results


def _raise_if_fatal(error: Exception) -> None:
    """A full disk and wrong weights stop the run: the next clip would meet the same."""
    from common.errors import ConfigError, WeightsError

    if isinstance(error, ConfigError | WeightsError) or getattr(error, "errno", None) in FATAL_ERRNOS:
        raise error
    # safetensors wraps the system's error in one of its own.
    if any(f"os error {number}" in str(error) for number in FATAL_ERRNOS):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def _join(parts: list[Summary]) -> Summary:
    return Summary(encoded=sum(p.encoded for p in parts), fresh=sum(p.fresh for p in parts),
                   unchecked=sum(p.unchecked for p in parts), stale=sum(p.stale for p in parts),
                   failed=[text for p in parts for text in p.failed])


def _finish(total: Summary, names: Sequence[str], store: CacheStore, jobs: list[FeatureJob], prune: bool) -> None:
    if note := store.musubi_note():
        log.info(note)
    own = {job.spec.name for job in jobs}
    strays = [path for path in store.orphans(jobs) if _feature_of(path) in own]
    if prune and store.dataset.failed:
        log.warning("--prune removed nothing: entries of the sources that cannot be read would count as unused")
    elif prune:
        for path in strays:
            path.unlink()
        log.info(f"{len(strays)} entries that no item uses were removed")
    elif strays:
        log.info(f"{len(strays)} entries of other clips or sizes lie unused in the cache; --prune removes them")
    for text in total.failed:
        log.error(f"failed: {text}")
    log.info(total.line(names))


def _feature_of(path: Path) -> str:
    return path.name.split(".")[-2]
