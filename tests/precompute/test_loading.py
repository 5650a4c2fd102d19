"""Clips that are decoded in worker processes are those of this process, in order; broken ones are told by name."""

from dataclasses import replace
import os
from pathlib import Path
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch

from common.errors import MediaError
from common.media.item import Media
from common.tensorfile import load_tensors
from dataset.config import load_dataset_config
from dataset.header import EntryState
from dataset.items import Item
from dataset.jobs import FeatureJob
from dataset.open import open_dataset
from dataset.spans import Span
from dataset.work import WorkEntry
from precompute import ModelFiles, run
from precompute.encoding import Handling, Summary, cut_into_batches
from precompute.loading import ClipRequest, PlainLoader, WorkerLoader, open_loader, read, usual_workers
from wan.encoders.specs import SPECS


def requests(data: Path, *needs: str) -> list[ClipRequest]:
    dataset = open_dataset(load_dataset_config(data / "data.toml"))
    return [ClipRequest(item, span, frozenset(needs)) for item in dataset.items for span in item.spans]


def same(found: object, expected: object) -> bool:
    """Equal in every field, arrays by value and dtype."""
    if not isinstance(found, Media) or not isinstance(expected, Media):
        return False
    return all(np.array_equal(value, other) and value.dtype == other.dtype if isinstance(value, np.ndarray)
               else value == other for value, other in zip(vars(found).values(), vars(expected).values(), strict=True))


def test_workers_give_what_this_process_reads_in_order(data: Path) -> None:
    """A clip that cannot be read stands in its place, with the same words, and costs only itself."""
    wanted = requests(data, "frames", "reference", "sound", "caption") * 4
    broken = data / "clips" / "broken.mp4"
    broken.write_bytes(wanted[0].item.media.path.read_bytes()[:2000])
    item = replace(wanted[0].item, media=replace(wanted[0].item.media, path=broken))
    wanted[5] = replace(wanted[5], item=item)
    with open_loader(2) as loader:
        found, expected = list(loader.load(wanted)), list(PlainLoader().load(wanted))
        again = list(loader.load(wanted[:3]))
    assert len(found) == 8 and all(same(found[k], expected[k]) for k in range(8) if k != 5)
    assert type(found[5]) is type(expected[5]) is MediaError and str(found[5]) == str(expected[5])
    assert "broken.mp4" in str(found[5])
    assert not same(found[0], found[1]), "the clips differ, so that their order is seen"
    assert all(map(same, again, expected[:3])), "a loader serves again"


def test_a_worker_that_dies_is_told_and_replaced(data: Path) -> None:
    wanted = requests(data, "frames")[:1] * 3
    with open_loader(1) as loader:
        assert isinstance(loader, WorkerLoader)
        assert same(next(iter(loader.load(wanted[:1]))), read(wanted[0]))
        loader.processes[0].kill()
        loader.processes[0].join()
        lost, *others = loader.load(wanted)
        assert isinstance(lost, MediaError) and "the process that read it ended (exit code -9)" in str(lost)
        assert wanted[0].item.where in str(lost) and all(same(one, read(wanted[0])) for one in others)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_first_process(data: Path, root: Path, stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.precompute.loop", str(data / "data.toml")]
    first = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             start_new_session=True)
    assert first.stdout is not None and first.stderr is not None
    workers = [int(word) for word in first.stdout.readline().split()]
    assert len(workers) == 2 and all(psutil.pid_exists(pid) for pid in workers)
    if stop == signal.SIGINT:  # as a terminal sends it, to all of them
        os.killpg(first.pid, stop)
    else:
        first.kill()
    first.wait(30)
    said = first.stderr.read()
    deadline = time.monotonic() + 20
    while any(_is_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_is_alive(pid) for pid in workers)
    assert said.count("Traceback") <= 1, said


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_by_default_are_this_process_s_share_of_the_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    assert usual_workers("cpu") == 0
    assert usual_workers("cuda:0") == min(16, cores - 1)
    assert usual_workers("cuda:1", processes=cores) == 0


def entries(data: Path) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, str]]]:
    return {path.name: load_tensors(path) for path in (data / "cache").glob("*.safetensors")}


def test_entries_and_failures_are_the_same_with_workers(data: Path, tiny_weights: Path) -> None:
    """Bit-equal in float32 on the CPU, headers too; a clip that cannot be decoded to its end is told in the same words.

    It is cut while its facts are remembered, so that it fails when it is read and not when the dataset is opened.
    """
    models = ModelFiles(vae=tiny_weights / "Wan2.1_VAE.pth")
    features, clip = ("latents", "image_latents"), data / "clips" / "head_001.mp4"

    def cached(handling: Handling) -> Summary:
        return run(features, data / "data.toml", models=models, force=True, handling=handling)

    assert cached(Handling()).encoded == 6
    plain = entries(data)
    assert cached(Handling(num_workers=2)).encoded == 6
    found = entries(data)
    assert found.keys() == plain.keys() and len(found) == 6
    for name, (tensors, header) in found.items():
        assert header == plain[name][1] and tensors.keys() == plain[name][0].keys()
        assert all(torch.equal(tensor, plain[name][0][key]) for key, tensor in tensors.items()), name
    content = clip.read_bytes()
    clip.write_bytes(content[:len(content) // 3] + bytes(len(content) - len(content) // 3))
    told = [cached(Handling(num_workers=workers)).failed for workers in (0, 2)]
    assert told[0] == told[1] and told[0] and all("head_001" in text for text in told[0])


def test_clips_encoded_together_are_those_of_one_by_one(data: Path, tiny_weights: Path,
                                                        caplog: pytest.LogCaptureFixture) -> None:
    models = ModelFiles(vae=tiny_weights / "Wan2.1_VAE.pth", t5=tiny_weights / "models_t5_umt5-xxl-enc-bf16.pth",
                        t5_dtype="float32")
    features = ("latents", "text")
    assert run(features, data / "data.toml", models=models).encoded == 6
    plain = entries(data)
    assert run(features, data / "data.toml", models=models, force=True, handling=Handling(batch_size=2)).encoded == 6
    assert "one by one" not in caplog.text
    for name, (tensors, header) in entries(data).items():
        assert header == plain[name][1]
        torch.testing.assert_close(tensors, plain[name][0], atol=1e-5, rtol=0)


def test_batches_are_of_one_form_and_captions_of_about_one_length(data: Path) -> None:
    dataset = open_dataset(load_dataset_config(data / "data.toml"))
    spec = {name: FeatureJob(SPECS[name], needs, "") for name, needs in (("latents", ("frames",)),
                                                                         ("text", ("caption",)))}
    item, span = dataset.items[0], dataset.items[0].spans[0]
    longer = replace(span, frames=13)

    def clip(name: str, span: Span | None, caption: str = "") -> list[WorkEntry]:
        return [WorkEntry(replace(item, caption=caption), span, spec[name], EntryState("missing"))]

    groups = [clip("latents", span), clip("text", None, "short"), clip("latents", span), clip("latents", longer),
              clip("text", None, "a very long caption"), clip("latents", span), clip("text", None, "longer one")]
    batches = cut_into_batches(groups, 2)
    assert [[group[0].span or len(group[0].item.caption) for group in batch] for batch in batches] == [
        [span, span], [longer], [span], [19, 10], [5]]
    assert cut_into_batches(groups, 1) == [[group] for group in groups]


def test_items_are_small_on_their_way(data: Path) -> None:
    item: Item = requests(data, "frames")[0].item
    assert len(pickle.dumps(item)) < 10_000
