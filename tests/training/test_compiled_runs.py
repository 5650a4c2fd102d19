"""Whole runs with compiled blocks: graphs by size, none made late, and what `--compile auto` decides."""

import json
import os
from pathlib import Path
import sysconfig

import pytest
import torch

from common.errors import ConfigError
from tests.training.preview_runs import models, write_prompts
from tests.training.runs import prepare_data, settings, validations
from training import train
from training.callbacks import Outcome, RunState
from training.clips import EpochBatches
from training.config import TrainConfig
from training.estimating.compile_choice import Work, compiler_problem, settle_compile, verdict, work_of
from training.keeping.states import find_states, read_state
from training.preflight import check
from training.processes import Processes
from training.telling.compiled_graphs import GraphReport
from wan.memory.graphs import GraphLog, Use

LONG = """
[[datasets]]
video_directory = "{folder}/clips"
cache_directory = "{folder}/long"
audio = "clip"
target_fps = 25
target_frames = [13]
"""


@pytest.fixture(scope="module")
def two_sizes(tmp_path_factory: pytest.TempPathFactory, root: Path, weights: Path) -> Path:
    """Five clips with sound, of nine frames and of thirteen."""
    folder = tmp_path_factory.mktemp("two")
    return prepare_data(folder, root, weights, ["latents", "text", "audio"], more=LONG.format(folder=folder.as_posix()))


def record(out: Path) -> dict:
    return json.loads((out / "training_state.json").read_text(encoding="utf-8"))


def was_compiled(out: Path) -> bool:
    """What the run's only state says."""
    (state,) = find_states(out, "t")
    found: bool = read_state(state).facts["compiled"]
    return found


def test_a_run_that_goes_on_stays_compiled_however_few_steps_are_left(
        two_sizes: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that compiles; what obstacles there are is asked of the GPU and tested below."""
    monkeypatch.setattr("training.estimating.compile_choice._obstacle", lambda plan, device: "")
    auto = settings(two_sizes, weights, tmp_path)
    for before, choice in ((True, "on"), (False, "off")):
        found = settle_compile(auto, *batches_of(auto), 5, was_compiled=before)
        assert found.speed.compile == choice


@pytest.mark.slow
def test_no_graph_is_made_after_the_second_step_of_a_size(two_sizes: Path, weights: Path, root: Path, tmp_path: Path
                                                          ) -> None:
    """With a condition, dropouts by sample, validation and previews in between, and an epoch's end on the way."""
    torch._dynamo.reset()
    out = tmp_path / "out"
    (tmp_path / "prompts").mkdir()
    train(settings(two_sizes, weights, out, compile="on", compile_backend="eager", max_train_steps=12,
                   network_args=["conditions=omniavatar_add"], validation_count=1, validate_every_n_steps=4,
                   sample_prompts=write_prompts(tmp_path / "prompts", root), sample_every_n_steps=5,
                   memory="matmuls:2,full", save_state_on_train_end=True, **models(weights)))
    assert was_compiled(out), "what a later start asks under auto"
    graphs = record(out)["graphs"]
    assert (graphs["made_late"], graphs["breaks"], graphs["blocks_run_uncompiled"]) == (0, 0, 0)
    training = {size["tokens"]: size for size in graphs["sizes"] if size["for"] == "training"}
    assert set(training) == {12, 16}, "latent frames x 2 x 2"
    assert all(len(size["steps"]) <= 2 and size["graphs"] <= 4 for size in training.values())
    looking = [size for size in graphs["sizes"] if size["for"] == "looking"]
    assert {12, 8} <= {size["tokens"] for size in looking}, "held-out clips, and the prompts' own sizes"
    assert len(validations(out)) == 3 + 1
    page = (out / "run_summary.md").read_text(encoding="utf-8")
    assert "| compiled blocks | " in page and "made after the second step of a size: 0; graph breaks: 0" in page


def test_a_plain_run_tells_of_no_graphs(two_sizes: Path, weights: Path, tmp_path: Path) -> None:
    train(settings(two_sizes, weights, tmp_path, max_train_steps=1, save_state_on_train_end=True))
    assert not was_compiled(tmp_path)
    assert record(tmp_path)["graphs"] is None
    text = (tmp_path / "settings.toml").read_text(encoding="utf-8")
    assert 'compile = "auto"' in text, "what was asked, not what it came to here"


class NoRun:
    """A run of which only the first process matters."""

    processes = Processes()

    def __init__(self, step: int) -> None:
        self.state = RunState(step)


def told(log: GraphLog, report: GraphReport, *steps: tuple[int, int]) -> None:
    """Steps of (tokens, graphs made)."""
    for number, (tokens, made) in enumerate(steps, 1):
        log.note(torch.zeros(1, tokens, 4), made)
        report.while_computing(NoRun(number - 1))  # type: ignore[arg-type]


def test_a_graph_that_is_made_late_is_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    log = GraphLog()
    report = GraphReport(log)
    told(log, report, (6, 2), (8, 1), (6, 1), (8, 0), (6, 0), (8, 0), (6, 1), (6, 1))
    assert report.late == 2 and caplog.text.count("compiled the blocks for 6 tokens again, after 3 steps") == 1
    assert report.made == {Use(True, 1, 6): {1: 2, 3: 1, 7: 1, 8: 1}, Use(True, 1, 8): {2: 1}}
    assert report.words.startswith("8 tokens: 1 graphs in step 2; 6 tokens: 5 graphs in step 1, 3, 7, 8; made")


def test_graphs_that_only_look_are_their_own() -> None:
    log = GraphLog()
    report = GraphReport(log)
    told(log, report, (6, 1), (6, 0), (6, 0))
    with torch.no_grad():
        told(log, report, (6, 1), (6, 0))
    assert report.late == 0 and set(report.made) == {Use(True, 1, 6), Use(False, 1, 6)}


def test_looks_are_told_with_the_step_that_they_followed_and_the_last_ones_too() -> None:
    log = GraphLog()
    report = GraphReport(log)
    told(log, report, (6, 2), (6, 1))
    with torch.no_grad():
        log.note(torch.zeros(1, 6, 4), 1)  # a measurement after step 2
    log.note(torch.zeros(1, 6, 4), 0)
    report.while_computing(NoRun(2))  # type: ignore[arg-type]
    with torch.no_grad():
        log.note(torch.zeros(1, 8, 4), 2)  # previews of the last step
    report.on_end(NoRun(3), Outcome.FINISHED)  # type: ignore[arg-type]
    assert report.made == {Use(True, 1, 6): {1: 2, 2: 1}, Use(False, 1, 6): {2: 1}, Use(False, 1, 8): {3: 2}}


@pytest.mark.parametrize(("work", "is_on"), [
    (Work(batches=1600, batch_s=7.0, sizes=3), True), (Work(batches=1600, batch_s=7.0, sizes=40), False),
    (Work(batches=30, batch_s=7.0, sizes=1), False), (Work(batches=60, batch_s=7.0, sizes=1), True)])
def test_auto_compiles_where_the_run_wins_by_it(work: Work, is_on: bool) -> None:
    decided, why = verdict(work)
    assert decided is is_on
    assert ("--compile on compiles all the same" in why) is not is_on
    assert f"{work.batches} batches save about {0.2 * work.batches * work.batch_s / 60:.1f} min" in why


def batches_of(config: TrainConfig) -> tuple:
    plan = check(config)
    return plan, EpochBatches(plan.clips, 1, Processes(), min_frames=plan.showing.min_frames)


def test_work_counts_sizes_with_random_lengths_and_accumulation(two_sizes: Path, weights: Path, tmp_path: Path) -> None:
    plain = settings(two_sizes, weights, tmp_path, gradient_accumulation_steps=3)
    work = work_of(plain, *batches_of(plain), steps=10)
    assert (work.batches, work.sizes) == (30, 2)
    drawn = settings(two_sizes, weights, tmp_path, random_length=True, min_frames=5)
    assert work_of(drawn, *batches_of(drawn), steps=10).sizes == 3, "5, 9 and 13 frames"
    longer = work_of(settings(two_sizes, weights, tmp_path, memory="full"), *batches_of(plain), steps=10)
    assert longer.batch_s > work.batch_s > 0


def test_auto_is_off_on_a_cpu_and_given_words_stay(two_sizes: Path, weights: Path, tmp_path: Path) -> None:
    auto = settings(two_sizes, weights, tmp_path)
    assert auto.speed.compile == "auto" and not auto.speed.compiles
    assert settle_compile(auto, *batches_of(auto), 1600).speed.compile == "off"
    for given, kept in ((True, "on"), (False, "off"), ("on", "on"), ("off", "off")):
        config = settings(two_sizes, weights, tmp_path, compile=given)
        assert config.speed.compile == kept
        assert settle_compile(config, *batches_of(auto), 1600) is config
    with pytest.raises(ConfigError, match="'onn' is none of auto, on, off"):
        settings(two_sizes, weights, tmp_path, compile="onn")


def test_what_a_machine_lacks_for_compiling_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton is missing" in compiler_problem()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    if os.name == "posix":
        assert "no C compiler" in compiler_problem()
    monkeypatch.setenv("CC", "gcc")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    if os.name == "posix":
        assert "Python.h is missing" in compiler_problem()
        (tmp_path / "Python.h").touch()
    assert compiler_problem() == ""
