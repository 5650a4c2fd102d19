"""The data side of a run: which features are needed, which clips there are, and their batches in order."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import os
from typing import Any

from common.errors import CacheError
from common.features import FeatureSpec
from common.fingerprint import text_hash
from common.logs import get_logger
from common.speakers import SPEAKER_REGIONS, audio_feature, speaker_of
from common.tensorfile import read_header
from dataset.batches import LoadedBatch, load_batch
from dataset.config import load_dataset_config
from dataset.open import Dataset, open_dataset
from dataset.plan import TrainingItem, plan_training
from dataset.sampler import BatchPlan, BatchSampler, MixedSampler
from training.config import DataSection
from training.prefetch import prefetched
from training.processes import Processes
from wan.encoders.specs import CONTROL_LATENTS, IMAGE_LATENTS, LATENTS, NULL, SPECS, TEXT, clip_spec, voice_spec
from wan.variants import Task

log = get_logger(__name__)


def needed_features(task: Task, more: Iterable[str] = ()) -> list[FeatureSpec]:
    """Features that training of `task` reads from the cache, and `more` (those of the conditions)."""
    specs = [LATENTS, TEXT]
    if task.family == "fun_control":
        specs.append(CONTROL_LATENTS)
    if task.uses_clip:
        specs += [IMAGE_LATENTS, clip_spec("first_last" if task.family == "flf2v" else "first")]
    names = {spec.name for spec in specs}
    return specs + [_spec(name) for name in dict.fromkeys(more) if name not in names]


def speaker_features(dataset: Dataset) -> list[str]:
    """Features that conditions which hear read beside `audio` where a dataset has several speakers, or places."""
    found = [audio_feature(speaker) for speaker in range(2, dataset.speakers + 1)]
    return found + [SPEAKER_REGIONS] * any(item.has(SPEAKER_REGIONS) for item in dataset.items)


def _spec(name: str) -> FeatureSpec:
    speaker = speaker_of(name) or 1
    return voice_spec(SPECS["audio"], speaker) if speaker > 1 else SPECS[name]


def find_dataset(settings: DataSection, multiple: int) -> Dataset:
    """The dataset that the TOML describes."""
    return open_dataset(load_dataset_config(settings.dataset_config), variant_multiple=multiple,
                        require_media=settings.require_sources)


def find_clips(dataset: Dataset, task: Task, more: Iterable[str], *, require_sources: bool) -> list[TrainingItem]:
    """Every clip with the cached features of `needed_features`.

    Raises CacheError that tells what is missing or stale, and the command that mends it.
    """
    wanted = [*more]
    if "audio" in wanted:
        wanted += speaker_features(dataset)
    clips = plan_training(dataset, needed_features(task, wanted), require_sources=require_sources)
    _refuse_other_pictures(clips, task)
    return clips


def _refuse_other_pictures(clips: Sequence[TrainingItem], task: Task) -> None:
    """The first picture, or first and last: caches of one kind of model have the shapes that the other takes."""
    wanted = "first_last" if task.family == "flf2v" else "first"
    for entry in clips[0].entries:
        if entry.path is None or entry.spec.name not in ("image_latents", "clip"):
            continue
        given = read_header(entry.path)[0].get("option.given", wanted)
        if given != wanted:
            raise CacheError(f"the cache of '{entry.spec.name}' was made with the pictures '{given}'; --task "
                             f"{task.name} is given '{wanted}'. Run: python {entry.spec.command} with --task "
                             f"{task.name} (in a cache_directory of its own if you need both).")


def require_null_text(dataset: Dataset, clips: Sequence[TrainingItem]) -> None:
    """CacheError where captions are to be dropped and the cache does not hold what stands for them."""
    spec = next(entry.spec for entry in clips[0].entries if entry.spec.name == TEXT.name)
    if NULL not in {tensor.name for tensor in spec.tensors}:
        raise CacheError(f"{dataset.path}: captions are to be dropped (--text_dropout, --audio_text_dropout), and the "
                         f"cached '{TEXT.name}' holds no tensor '{NULL}' to stand for them: an older version made it. "
                         f"Run: python {TEXT.command} --dataset_config \"{dataset.path}\" --t5 … (or train with "
                         "--text_dropout 0 --audio_text_dropout 0).")


def read_one(clip: TrainingItem) -> LoadedBatch:
    """One clip's features, as a batch of one."""
    return load_batch(BatchPlan(items=(clip,), positions=(0,), weights=(1.0,), global_count=1, epoch=0, index=0))


@dataclass(frozen=True)
class EpochBatches:
    """This process's batches of any epoch, read ahead by threads."""

    clips: Sequence[TrainingItem]
    seed: int
    processes: Processes
    workers: int = 0
    min_frames: int | None = None
    """Shortest random length; None: clips are shown whole."""
    shares: Mapping[int, float] | None = None
    """How likely a batch is to come from each entry (`section_index`); None: an epoch shows every clip once."""

    def sampler(self, epoch: int, start: int = 0) -> BatchSampler:
        """Order of an epoch's batches."""
        order: dict[str, Any] = {"seed": self.seed, "epoch": epoch, "world_size": self.processes.count,
                                 "rank": self.processes.rank, "start_at": start, "min_frames": self.min_frames}
        if self.shares is None:
            return BatchSampler(self.clips, **order)
        return MixedSampler(self.clips, self.shares, **order)

    @property
    def per_epoch(self) -> int:
        """Batches of each process in an epoch."""
        return self.sampler(1).batches_per_epoch

    @property
    def samples_per_epoch(self) -> int:
        """Samples in an epoch that shows every clip, over all processes, repeats included."""
        return sum(clip.item.repeats for clip in self.clips)

    def samples_in(self, epoch: int) -> int:
        """Samples of one epoch, over all processes: with `shares` epochs differ."""
        return self.samples_per_epoch if self.shares is None else self.sampler(epoch).samples

    def digest(self) -> str:
        """Hash of what the order of an epoch and its batches follow from: equal on processes that train alike."""
        return text_hash(f"{digest(self.clips)} {self.min_frames}{self._shares_text}")

    def order(self) -> str:
        """Hash of an epoch's global batches: the same for two processes with batches of one as for one with two."""
        return text_hash(repr([(clip.name, clip.item.content, clip.item.caption, clip.bucket, clip.item.repeats,
                                clip.batch_size * self.processes.count) for clip in self.clips])
                         + f" {self.min_frames}{self._shares_text}")

    @property
    def _shares_text(self) -> str:
        return "" if self.shares is None else f" {sorted(self.shares.items())}"

    def __call__(self, epoch: int, start: int) -> Generator[LoadedBatch | None, None, None]:
        """Loaded batches from number `start` on; None where this process has no share in a short global batch."""
        workers = min(self.workers, os.cpu_count() or 1)
        load = _load_pinned if self.processes.device.type == "cuda" else _load
        yield from prefetched(self.sampler(epoch, start), load, workers=workers)


def _load(plan: BatchPlan) -> LoadedBatch | None:
    return load_batch(plan) if any(plan.weights) else None


def _load_pinned(plan: BatchPlan) -> LoadedBatch | None:
    batch = _load(plan)
    return None if batch is None else batch.pinned()


def digest(clips: Sequence[TrainingItem]) -> str:
    """Hash of which clips these are, in their order, and of how they are put into batches."""
    return text_hash(repr([(clip.name, clip.item.content, clip.bucket, clip.item.repeats, clip.batch_size)
                           for clip in clips]))


def sizes_of(clips: Sequence[TrainingItem]) -> list[tuple[int, int, int]]:
    """Different (width, height, frames) of the clips, the largest first."""
    sizes = {(clip.span.width, clip.span.height, clip.frames) for clip in clips}
    return sorted(sizes, key=lambda size: size[0] * size[1] * size[2], reverse=True)


def dataset_facts(dataset: Dataset) -> list[dict[str, Any]]:
    """What the metadata of the file say about each entry of the dataset (no paths)."""
    return list(_facts(dataset))


def _facts(dataset: Dataset) -> Iterator[dict[str, Any]]:
    for section in dataset.config.sections:
        items = [item for item in dataset.items if item.section_index == section.index]
        if not items:
            continue
        yield {"name": section.name, "kind": section.kind, "items": len(items), "batch_size": items[0].batch_size,
               "num_repeats": items[0].repeats, "fps": items[0].fps, "clips": sum(len(item.spans) for item in items),
               "sizes": sorted({f"{s.width}x{s.height}x{s.frames}" for item in items for s in item.spans})}
