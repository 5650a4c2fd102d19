"""Previews end to end on the tiny weights: what generate_video.py makes, and a training that they do not touch."""

from collections.abc import Iterator
from dataclasses import dataclass
import json
import os
from pathlib import Path
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
import torch

from common.config import parse, to_toml
from common.media.sound import read_sound
from common.media.video import probe_video, read_frames
from inference import generate
from inference.prompts import read_prompts
from inference.request import GenerationRequest
from inference.result import GenerationResult
from tests.training.preview_runs import models, write_prompts
from tests.training.runs import losses, settings
from training import train
import training.looking.previews as module

LEARNING: dict[str, Any] = {"network_args": ["conditions=omniavatar_add"], "learning_rate": 1e-2,
                            "network_dropout": 0.2, "max_train_steps": 4, "save_every_n_steps": 2}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    return write_prompts(tmp_path_factory.mktemp("prompts"), root)


@dataclass(frozen=True)
class Done:
    """A run with previews before the first step, after the second and at the end."""

    out: Path
    results: list[GenerationResult]
    """Two of each round, as they were handed to the files."""

    def path(self, step: int, number: int, ending: str) -> Path:
        return self.out / "sample" / f"t_step{step:08d}_{number:02d}{ending}"

    def record(self, step: int, number: int) -> dict[str, Any]:
        return json.loads(self.path(step, number, ".json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def done(talking: Path, weights: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Done]:
    results: list[GenerationResult] = []
    write = module.write_preview

    def remember(video: Path, result: GenerationResult, *others: Any) -> list[Path]:
        results.append(result)
        return write(video, result, *others)

    out = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_preview", remember)
        train(settings(talking, weights, out, sample_prompts=prompts, sample_every_n_steps=2, sample_at_first=True,
                       **models(weights), **LEARNING))
    yield Done(out, results)


def again(record: Path, **changes: Any) -> GenerationResult:
    """What generate_video.py makes of a preview's record."""
    request = parse(GenerationRequest, ["--config_file", str(record)], prog="generate_video.py", description="")
    return generate(request.model_copy(update=changes))


def same(a: GenerationResult, b: GenerationResult) -> bool:
    """Whether all frames are equal, bit for bit, before any codec."""
    return a.video is not None and b.video is not None and torch.equal(a.video, b.video)


def test_a_preview_leaves_its_files(done: Done) -> None:
    endings = [".mp4", ".json", ".txt", ".wav", "_f0.jpg", "_fmid.jpg", "_flast.jpg", "_ref.jpg"]
    wanted = {done.path(step, number, ending).name for step in (0, 2, 4) for number in (0, 1) for ending in endings}
    assert {path.name for path in (done.out / "sample").iterdir()} == {"index.html", *wanted}
    info = probe_video(done.path(2, 0, ".mp4"))
    assert (info.codec, info.frames, info.width, info.height) == ("h264", 5, 32, 32) and info.has_sound
    assert done.path(2, 0, ".txt").read_text(encoding="utf-8") == "a <b>head</b> speaks\n"
    assert read_sound(done.path(2, 1, ".wav")).duration_s == pytest.approx(0.2)
    checkpoint = str(done.out / "t-step00000002.safetensors")
    record = done.record(2, 0)
    assert record["settings"]["lora_weight"] == [checkpoint] and record["settings"]["lora_attach"] is True
    mean = sum(losses(done.out)[:2]) / 2
    assert record["training"] == {"name": "t", "step": 2, "epoch": 1, "number": 0, "from": "prompts.txt line 2",
                                  "seed_from": "its line", "loss": losses(done.out)[1], "checkpoint": checkpoint,
                                  "average_loss": pytest.approx(mean)}
    page = (done.out / "sample" / "index.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt;head&lt;/b&gt; speaks" in page and "<b>head" not in page
    assert f'src="{done.path(2, 0, ".mp4").name}"' in page and "<th>step 2<small>epoch 1, loss" in page


def test_a_step_without_a_checkpoint_says_so(done: Done) -> None:
    record = done.record(0, 0)
    assert "lora_weight" not in record["settings"] and "no checkpoint" in record["about"]
    assert record["training"]["checkpoint"] is None and "loss" not in record["training"]


def test_a_line_without_a_seed_has_one_that_stays(done: Done) -> None:
    assert len({done.record(step, 1)["settings"]["seed"] for step in (0, 2, 4)}) == 1
    assert done.record(0, 1)["training"]["seed_from"] == "--seed 7 and prompt number 1"
    assert done.record(0, 1)["settings"]["seed"] != done.record(0, 0)["settings"]["seed"] == 3


def test_a_record_makes_the_preview_again(done: Done, tmp_path: Path) -> None:
    made = again(done.path(2, 0, ".json"), save_path=tmp_path / "again.mp4")
    assert same(done.results[2], made) and not same(done.results[0], made)
    assert np.array_equal(read_frames(done.path(2, 0, ".mp4"), fps=25), read_frames(tmp_path / "again.mp4", fps=25))


def test_the_prompt_file_makes_the_preview_with_the_final_file(done: Done, weights: Path, prompts: Path) -> None:
    base = GenerationRequest(dit=weights / "wan2.1_t2v_tiny.safetensors", device="cpu",
                             lora_weight=[done.out / "t.safetensors"], lora_attach=True, **models(weights))
    request = read_prompts(prompts, base)[0].request
    assert request is not None and same(done.results[4], generate(request))
    # Merged into the base, which is the default, weights round once more: the frames are the same in 8 bits.
    merged = generate(request.model_copy(update={"lora_attach": False}))
    assert np.array_equal(done.results[4].frames, merged.frames)
    assert np.abs(done.results[4].frames.astype(int) - done.results[0].frames).max() > 20


def test_training_is_the_one_without_previews(done: Done, talking: Path, weights: Path, tmp_path: Path) -> None:
    train(settings(talking, weights, tmp_path, **LEARNING))
    looked, plain = load_file(done.out / "t.safetensors"), load_file(tmp_path / "t.safetensors")
    assert looked.keys() == plain.keys() and all(torch.equal(looked[key], plain[key]) for key in looked)
    assert losses(done.out) == losses(tmp_path)


@pytest.mark.slow
def test_two_processes_share_the_previews(done: Done, talking: Path, weights: Path, prompts: Path, tmp_path: Path,
                                          root: Path) -> None:
    out = tmp_path / "two"
    config = settings(talking, weights, out, sample_prompts=prompts, sample_every_n_epochs=1, sample_at_first=True,
                      **models(weights), **LEARNING)
    (tmp_path / "two.toml").write_text(to_toml(config), encoding="utf-8")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2",
               "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
               str(root / "train_network.py"), "--config_file", str(tmp_path / "two.toml")]
    result = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
                            check=False, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    both = Done(out, [])
    made = sorted((out / "sample").glob("*.mp4"))
    assert made == [both.path(step, number, ".mp4") for step in (0, 3, 4) for number in (0, 1)]
    for number in (0, 1):
        fresh = [one.path(0, number, ".mp4") for one in (done, both)]
        assert np.array_equal(*(read_frames(path, fps=25) for path in fresh)), "the same seeds and the same weights"
    assert both.record(4, 1)["training"]["checkpoint"] == str(out / "t.safetensors")
    page = (out / "sample" / "index.html").read_text(encoding="utf-8")
    assert all(path.name in page for path in made)
