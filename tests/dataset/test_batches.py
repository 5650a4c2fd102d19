"""Loading batches: stacked or listed as the contract says, cut to the clip."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.errors import CacheError
from common.features import FeatureSpec, rows_of_span
from dataset.batches import LoadedBatch, load_batch
from dataset.plan import TrainingItem, plan_training
from dataset.sampler import BatchSampler
from dataset.store import CacheStore
from tests.dataset.toys import MakeVideo, ToyAudio, ToyLatents, ToyText, cache, opened, write_dataset

TOML = """
[[datasets]]
video_directory = "{d}/clips"
cache_directory = "{d}/cache"
resolution = [48, 32]
target_frames = [9]
frame_extraction = "chunk"
audio = "clip"
batch_size = 2
"""


@pytest.fixture()
def folder(tmp_path: Path, make_video: MakeVideo, weights: Path) -> Path:
    for number, name in enumerate(("a", "b", "c")):
        make_video(tmp_path / "clips" / f"{name}.mp4", frames=21, sound_s=0.84, seed=number, caption="x" * (number + 2))
    cache(opened(write_dataset(tmp_path, TOML)), [ToyLatents(weights), ToyText(weights), ToyAudio(weights)])
    return tmp_path


@pytest.fixture()
def plan(folder: Path, weights: Path) -> list[TrainingItem]:
    return plan_training(opened(folder / "dataset.toml"), [ToyLatents.spec, ToyText.spec, ToyAudio(weights).spec])


def same(a: LoadedBatch, b: LoadedBatch) -> bool:
    return (a.positions == b.positions and torch.equal(a.latents, b.latents) and torch.equal(a.weights, b.weights)
            and torch.equal(a.features.features["audio"]["states"], b.features.features["audio"]["states"])
            and all(torch.equal(x, y) for x, y in zip(a.features.features["text"]["hidden"],
                                                      b.features.features["text"]["hidden"], strict=True)))


def test_batch_holds_what_the_cache_holds(folder: Path, plan: list[TrainingItem], weights: Path) -> None:
    dataset = opened(folder / "dataset.toml")
    store = CacheStore(dataset)
    for batch in map(load_batch, BatchSampler(plan, seed=0, epoch=0)):
        assert batch.latents.shape == (2, 16, 3, 4, 6)
        assert (batch.features.frames, batch.features.fps, batch.global_count) == (9, 25.0, 2)
        assert batch.features.present == {}
        assert batch.weights.tolist() == [1.0, 1.0]
        for row, one in enumerate(batch.items):
            latents, _ = store.read(one.item, one.span, ToyLatents.spec)
            text, _ = store.read(one.item, None, ToyText.spec)
            audio, _ = store.read(one.item, None, ToyAudio(weights).spec)
            assert torch.equal(batch.latents[row], latents["latents"])
            assert torch.equal(batch.features.features["text"]["hidden"][row], text["hidden"])
            assert torch.equal(batch.features.features["audio"]["states"][row],
                               audio["states"][one.span.start:one.span.end])


def test_rows_of_the_whole_sound_are_cut_to_the_clip(plan: list[TrainingItem]) -> None:
    seen = {}
    for batch in map(load_batch, BatchSampler(plan, seed=0, epoch=0)):
        for one, states in zip(batch.items, batch.features.features["audio"]["states"], strict=True):
            seen[one.span.start] = states[:, 0, 1].tolist()
    assert seen == {0: list(range(9)), 9: list(range(9, 18))}


def _with_halo(weights: Path, scope: str = "file") -> FeatureSpec:
    spec = ToyAudio(weights, scope).spec
    return replace(spec, tensors=tuple(replace(tensor, halo=2) for tensor in spec.tensors))


def test_rows_beside_the_clip_are_read_and_clamped_to_the_sound(folder: Path, weights: Path) -> None:
    """From a cache whose record knows of no halo: how much is read beside a clip is the reader's matter."""
    plan = plan_training(opened(folder / "dataset.toml"), [ToyLatents.spec, _with_halo(weights)])
    seen = {}
    for batch in map(load_batch, BatchSampler(plan, seed=0, epoch=0)):
        audio = batch.features.features["audio"]
        assert audio.keys() == {"states", "before", "after"}
        for number, one in enumerate(batch.items):
            seen[one.span.start] = [audio[name][number][:, 0, 1].tolist() for name in ("before", "states", "after")]
    assert seen == {0: [[0, 0], list(range(9)), [9, 10]], 9: [[7, 8], list(range(9, 18)), [18, 19]]}


def test_sound_of_the_clip_alone_has_nothing_beside_it(tmp_path: Path, make_video: MakeVideo, weights: Path) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=21, sound_s=0.84, caption="x")
    cache(opened(write_dataset(tmp_path, TOML)), [ToyLatents(weights), ToyAudio(weights, "clip")])
    plan = plan_training(opened(tmp_path / "dataset.toml"), [ToyLatents.spec, _with_halo(weights, "clip")])
    batch = load_batch(next(iter(BatchSampler(plan, seed=0, epoch=0))))
    assert batch.features.features["audio"].keys() == {"states"}


@pytest.mark.parametrize(("span", "rows"), [
    ((0, 5), [[0, 0], [0, 1, 2, 3, 4], [5, 6]]), ((1, 6), [[0, 0], [1, 2, 3, 4, 5], [6, 7]]),
    ((5, 9), [[3, 4], [5, 6, 7, 8], [9, 9]]), ((0, 10), [[0, 0], list(range(10)), [9, 9]]),
    ((8, 12), [[6, 7], [8, 9, 9, 9], [9, 9]])])
def test_rows_of_a_span_are_clamped_to_the_sound(span: tuple[int, int], rows: list[list[int]]) -> None:
    sound = torch.arange(10)
    assert [part.tolist() for part in rows_of_span(lambda start, end: sound[start:end], 10, span, 2)] == rows


def test_batches_may_be_read_by_threads(plan: list[TrainingItem]) -> None:
    plans = list(BatchSampler(plan, seed=0, epoch=0))
    with ThreadPoolExecutor(3) as pool:
        assert all(same(a, b) for a, b in zip(map(load_batch, plans), pool.map(load_batch, plans), strict=True))


def test_entry_that_went_is_named_with_its_command(folder: Path, plan: list[TrainingItem]) -> None:
    for path in (folder / "cache").glob("*.text.safetensors"):
        path.unlink()
    with pytest.raises(CacheError, match=r"text\.safetensors: cannot be read.*cache_text_encoder_outputs\.py"):
        load_batch(next(iter(BatchSampler(plan, seed=0, epoch=0))))


def test_sound_that_is_shorter_than_the_clip_is_named(folder: Path, plan: list[TrainingItem], weights: Path) -> None:
    from common.tensorfile import load_tensors, save_tensors

    for path in (folder / "cache").glob("*.audio.safetensors"):
        tensors, header = load_tensors(path)
        save_tensors(path, {"states": tensors["states"][:5]}, header)
    with pytest.raises(CacheError, match=r"'audio' has 5 frames, the clip ends at"):
        load_batch(next(iter(BatchSampler(plan, seed=0, epoch=0))))


def test_of_a_shortened_clip_only_its_start_is_read(plan: list[TrainingItem], weights: Path, folder: Path) -> None:
    """Latents, rows of the whole sound and their number; the rows after the cut are still heard beside it."""
    plan = plan_training(opened(folder / "dataset.toml"), [ToyLatents.spec, ToyText.spec, _with_halo(weights)])
    whole = load_batch(next(iter(BatchSampler(plan, seed=0, epoch=0))))
    short = load_batch(next(iter(BatchSampler([one.cut(5) for one in plan], seed=0, epoch=0))))
    assert [one.name for one in short.items] == [one.name for one in whole.items]
    assert torch.equal(short.latents, whole.latents[:, :, :2])
    audio, before = short.features.features["audio"], whole.features.features["audio"]
    assert torch.equal(audio["states"], before["states"][:, :5]) and short.features.frames == 5
    assert torch.equal(audio["before"], before["before"])
    assert torch.equal(audio["after"], before["states"][:, 5:7])


def _without_sound(one: TrainingItem) -> TrainingItem:
    """The clip as one of a source without sound."""
    entries = (replace(entry, path=None) if entry.spec.name == "audio" else entry for entry in one.entries)
    return replace(one, entries=tuple(entries))


def test_sound_of_the_clip_alone_is_cut_too_and_absent_sound_is_as_short(tmp_path: Path, make_video: MakeVideo,
                                                                        weights: Path) -> None:
    make_video(tmp_path / "clips" / "a.mp4", frames=21, sound_s=0.84, caption="x")
    cache(opened(write_dataset(tmp_path, TOML)), [ToyLatents(weights), ToyAudio(weights, "clip")])
    plan = plan_training(opened(tmp_path / "dataset.toml"), [ToyLatents.spec, _with_halo(weights, "clip")])
    for clips in (plan, [_without_sound(one) for one in plan]):
        [batch] = map(load_batch, BatchSampler([one.cut(5) for one in clips], seed=0, epoch=0))
        assert batch.features.features["audio"]["states"].shape[:2] == (2, 5)
        assert batch.latents.shape[2] == 2


def test_clips_with_and_without_sound_never_stand_in_one_batch(plan: list[TrainingItem]) -> None:
    mixed = [one if number % 2 else _without_sound(one) for number, one in enumerate(plan)]
    without = {one.name for number, one in enumerate(plan) if not number % 2}
    seen = []
    for batch in map(load_batch, BatchSampler(mixed, seed=0, epoch=0)):
        names = {one.name for one in batch.items}
        seen += [*names]
        assert names <= without or not names & without
        present = batch.features.present.get("audio")
        assert present is None if not names & without else present is not None and not present.any()
    assert sorted(seen) == sorted(one.name for one in plan)
