"""For the named features: find what is missing or stale, encode it, store it, and say what happened."""

from collections.abc import Sequence
import os
from pathlib import Path
from typing import TYPE_CHECKING

from common.logs import get_logger
from common.speakers import SPEAKER_REGIONS, audio_feature
from dataset.config import load_dataset_config
from dataset.jobs import FeatureJob
from dataset.open import Dataset, open_dataset
from dataset.store import CacheStore
from dataset.work import share, to_do, work_list
from precompute.encoding import ONE_BY_ONE, Handling, Summary, encode_entries
from precompute.models import ModelFiles, build_encoders
from precompute.processes import gather, process_index
from precompute.voiced import tell_voiced

if TYPE_CHECKING:
    from dataset.schema import AudioShort

log = get_logger(__name__)


def run(features: Sequence[str], dataset_config: str | os.PathLike[str], *, models: ModelFiles, force: bool = False,
        prune: bool = False, audio_short: "AudioShort | None" = None, handling: Handling = ONE_BY_ONE) -> Summary:
    """Bring the caches of `features` up to date for a dataset TOML.

    Several processes (`accelerate launch`) share the items. Everything that can be told before a model loads is told
    first: ConfigError for the TOML, missing weights or unknown features. A source that cannot be read, or an item
    that an encoder refuses, is listed in the returned summary and costs only itself. `handling` with workers starts
    processes by spawning: a script that calls this needs ``if __name__ == "__main__":``.
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
    summary = encode_entries(to_do(mine, force=force), store, dict(zip(names, encoders, strict=True)), models.device,
                             handling)
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
