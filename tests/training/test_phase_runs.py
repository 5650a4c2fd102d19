"""Whole runs with phases on the tiny weights: what they leave, and what is refused beforehand."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
import torch

from common.errors import CacheError, ConfigError
from networks.metadata import Origin
from precompute import ModelFiles, run
from tests.training.runs import CLIPS, losses, prepare_data, settings
from training import train
from training.preflight import check, tell

SHORT = """
[[datasets]]
name = "short"
video_directory = "{folder}/clips"
cache_directory = "{folder}/short"
target_frames = [5]
"""
HEARING = ["conditions=omniavatar_add"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, root: Path, weights: Path) -> Path:
    """Clips of nine frames with sound (`clips`), and of five of the same files without (`short`)."""
    folder = tmp_path_factory.mktemp("phases")
    more = SHORT.format(folder=folder.as_posix())
    return prepare_data(folder, root, weights, ["latents", "text", "audio"], more=more)


def phases(folder: Path, *tables: str) -> Path:
    """A file of the phases that `tables` are the lines of."""
    path = folder / "mine.toml"
    path.write_text("\n".join(f"[[phases]]\n{one}\n" for one in tables), encoding="utf-8")
    return path


def test_a_run_with_phases_leaves_its_table_and_says_so_in_its_file(
        data: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = phases(tmp_path, "start_step = 0\ndatasets = ['short']", "start_step = 3\naudio_dropout = 0.5\n"
                   "datasets = { clips = 0.75, short = 0.25 }\ndiscrete_flow_shift = 5")
    with caplog.at_level(logging.INFO):
        final = train(settings(data, weights, tmp_path / "out", network_args=HEARING, phases=table,
                               validation_count=1, max_train_steps=9))
    assert (tmp_path / "out" / "phases.toml").read_text() == table.read_text()
    assert f'phases = "{table}"' in (tmp_path / "out" / "settings.toml").read_text()
    with safe_open(final or "", "pt") as file:
        metadata = file.metadata()
        origin = Origin.read(metadata)
    assert origin is not None and origin.showing["phases"] == [
        {"start_step": 0, "datasets": ["short"]},
        {"start_step": 3, "audio_dropout": 0.5, "datasets": {"clips": 0.75, "short": 0.25}, "discrete_flow_shift": 5}]
    assert (metadata["ss_num_epochs"], metadata["ss_epoch"]) == ("2", "2")
    assert len(losses(tmp_path / "out")) == 9
    lines = [line for line in caplog.messages if line.startswith("the run ") and "phase" in line.split(":")[0]]
    assert len(lines) == 2 and "goes over to phase 2 at step 4 (to step 9): clips 75 % (32x32x9)" in lines[1]
    assert "1 x 32x32x5 = 8 tokens" in caplog.text and "1 x 32x32x9 = 12 tokens" in caplog.text


def test_held_out_files_are_in_no_phase(data: Path, weights: Path, tmp_path: Path) -> None:
    table = phases(tmp_path, "start_step = 0\nmax_tokens = 8", "start_step = 3\ndatasets = ['short']")
    plan = check(settings(data, weights, tmp_path / "out", phases=table, validation_count=2))
    held_out = {clip.item.content for clip in plan.held_out}
    assert len(held_out) == 2 and [len(one.clips) for one in plan.phases] == [2 * (CLIPS - 2), CLIPS - 2]
    assert not held_out & {clip.item.content for one in plan.phases for clip in one.clips}
    assert {clip.frames for clip in plan.phases[0].clips} == {5} and {clip.frames for clip in plan.clips} == {5, 9}


def test_one_phase_with_everything_trains_as_without(data: Path, weights: Path, tmp_path: Path) -> None:
    table = phases(tmp_path, "start_step = 0")
    plain = load_file(train(settings(data, weights, tmp_path / "plain", network_args=HEARING)) or "")
    phased = load_file(train(settings(data, weights, tmp_path / "phased", network_args=HEARING, phases=table)) or "")
    assert all(torch.equal(plain[key], phased[key]) for key in plain)


def test_the_caches_of_every_phase_must_be_there_at_the_start(talking: Path, weights: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.toml"
    more.write_text(talking.read_text(encoding="utf-8") + SHORT.format(folder=talking.parent.as_posix()).replace(
        "/short", "/never-made"), encoding="utf-8")
    table = phases(tmp_path, "start_step = 0\ndatasets = ['clips']", "start_step = 3\ndatasets = ['short']")
    with pytest.raises(CacheError, match="latents: 5 missing"):
        check(settings(more, weights, tmp_path / "out", phases=table))


@pytest.mark.parametrize(("tables", "flags", "words"), [
    (["start_step = 0\ndatasets = ['shorts']"], {}, r"'shorts' is no entry of .* \(nearest: 'short'\)"),
    (["start_step = 0"], {"max_train_epochs": 2}, "--max_train_epochs with --phases"),
    (["start_step = 0", "start_step = 2\naudio_dropout = 0.1"], {}, "phase 2: .*needs a condition that hears"),
    (["start_step = 0", "start_step = 2\nprefix_frames = [9]"], {"network_args": HEARING},
     "phase 2: --prefix_frames 9: .* would have no frame left to learn"),
    (["start_step = 0\naudio_dropout = 0.9"], {"network_args": HEARING}, "phase 1: .*can be 1 at most"),
    (["start_step = 0\nmax_tokens = 3"], {}, "phase 1: --max_tokens 3 holds not even one latent frame"),
    (["start_step = 0\nmin_timestep = 900"], {"max_timestep": 500}, "--min_timestep 900 must be below"),
    (["start_step = 0\ndiscrete_flow_shift = 5"], {"timestep_sampling": "uniform", "discrete_flow_shift": 1},
     "phase 1: discrete_flow_shift has no effect with --timestep_sampling uniform"),
])
def test_phases_that_do_not_fit_are_refused_before_models_load(tables: list[str], flags: dict[str, Any], words: str,
                                                              data: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        check(settings(data, weights, tmp_path / "out", phases=phases(tmp_path, *tables), **flags))


def test_a_phase_with_nothing_to_train_on_is_refused(root: Path, weights: Path, talking: Path, tmp_path: Path) -> None:
    """Two files, one in each entry: the one that is held out leaves its entry empty."""
    rows = [json.dumps({"video_path": f"{talking.parent.as_posix()}/clips/head_00{number}.mp4", "caption": "speaks"})
            for number in range(2)]
    text = "[general]\nresolution = [32, 32]\n"
    for number, row in enumerate(rows):
        (tmp_path / f"{number}.jsonl").write_text(row + "\n", encoding="utf-8")
        text += (f'[[datasets]]\nname = "entry{number}"\nvideo_jsonl_file = "{tmp_path.as_posix()}/{number}.jsonl"\n'
                 f'cache_directory = "{tmp_path.as_posix()}/cache{number}"\ntarget_frames = [5]\n')
    data = tmp_path / "data.toml"
    data.write_text(text, encoding="utf-8")
    models = ModelFiles(vae=weights / "Wan2.1_VAE.pth", t5=weights / "models_t5_umt5-xxl-enc-bf16.pth")
    assert not run(["latents", "text"], data, models=models).failed
    table = phases(tmp_path, "start_step = 0\ndatasets = ['entry0', 'entry1']")
    with pytest.raises(ConfigError, match=r"phase 1: datasets: no clips to train on in entry\d \(1 held out\)"):
        check(settings(data, weights, tmp_path / "out", phases=table, validation_count=1))
    everything = check(settings(data, weights, tmp_path / "out", validation_count=1,
                                phases=phases(tmp_path, "start_step = 0")))
    assert len(everything.phases[0].clips) == 1


def test_what_never_happens_is_told(data: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
                                    ) -> None:
    table = phases(tmp_path, "start_step = 0\ndatasets = ['short']",
                   "start_step = 2\ndatasets = {short = 1, clips = 0}", "start_step = 5000")
    with caplog.at_level(logging.INFO):
        plan = check(settings(data, weights, tmp_path / "out", phases=table))
        tell(plan)
    assert "phase 3 is never reached: it starts at 5000, the run has 5 steps" in caplog.text
    assert "phase 2 changes nothing: its clips, shares and settings are those of phase 1" in caplog.text
    assert "the dataset's entry 'clips' is in no phase: it is never trained on" in caplog.text
    assert [line.split()[:2] for line in caplog.messages[-1].splitlines()] == [["phase", "steps"], ["1", "1-2"],
                                                                              ["2", "3-5"]]


SHORT_FIRST = ("start_step = 0\ndatasets = ['short']",
               "start_step = 3\ndatasets = { clips = 0.5, short = 0.5 }\naudio_dropout = 0.5",
               "start_step = 12\ndatasets = ['clips']")


def test_a_stop_in_any_phase_leaves_no_trace(data: Path, weights: Path, tmp_path: Path,
                                             caplog: pytest.LogCaptureFixture) -> None:
    """Weights of runs that stopped after step 2 (in an epoch), 3 (at the switch), 6 and 13, and of the straight one."""
    flags: dict[str, Any] = {"network_args": HEARING, "phases": phases(tmp_path, *SHORT_FIRST),
                             "num_timestep_buckets": 3, "gradient_accumulation_steps": 2}
    straight = load_file(train(settings(data, weights, tmp_path / "straight", max_train_steps=15, **flags)) or "")
    with caplog.at_level(logging.INFO):
        for steps in (2, 3, 6, 13, 15):
            final = train(settings(data, weights, tmp_path / "parts", max_train_steps=steps, **flags))
    parts = load_file(final or "")
    assert all(torch.equal(straight[key], parts[key]) for key in straight)
    assert losses(tmp_path / "parts") == losses(tmp_path / "straight")
    for line in ("goes on in phase 1 at step 3", "goes on in phase 2 at step 4", "goes on in phase 2 at step 7",
                 "goes over to phase 3 at step 13", "goes on in phase 3 at step 14"):
        assert f"the run {line}" in caplog.text


@pytest.mark.parametrize(("tables", "words"), [
    ([SHORT_FIRST[0], SHORT_FIRST[1].replace("0.5, short = 0.5", "0.75, short = 0.25")],
     "or the phase of step 5 are not those of the run .--resume_new_data"),
    ([SHORT_FIRST[0], SHORT_FIRST[1].replace("start_step = 3", "start_step = 4")], "or the phase of step 5"),
    ([SHORT_FIRST[0], SHORT_FIRST[1].replace("audio_dropout = 0.5", "audio_dropout = 0.1")],
     "--phases: audio_dropout of step 5 was 0.5, is 0.1 .needs --resume_weights_only"),
    ([SHORT_FIRST[0]], "or the phase of step 5"),
])
def test_the_phase_that_a_run_is_in_may_not_be_changed(tables: list[str], words: str, half_way: Path, data: Path,
                                                      weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        train(settings(data, weights, half_way, network_args=HEARING, phases=phases(tmp_path, *tables),
                       max_train_steps=7))


@pytest.fixture
def half_way(data: Path, weights: Path, tmp_path: Path) -> Path:
    """Folder of a run of five steps, two of them in the second phase."""
    train(settings(data, weights, tmp_path / "half", network_args=HEARING, phases=phases(tmp_path, *SHORT_FIRST)))
    return tmp_path / "half"


def test_phases_that_are_over_or_to_come_may_be_changed(half_way: Path, data: Path, weights: Path, tmp_path: Path
                                                       ) -> None:
    tables = [SHORT_FIRST[0].replace("short", "clips"), SHORT_FIRST[1], "start_step = 6\naudio_dropout = 0.8"]
    flags: dict[str, Any] = {"network_args": HEARING, "phases": phases(tmp_path, *tables)}
    train(settings(data, weights, half_way, max_train_steps=7, **flags))
    assert len(losses(half_way)) == 7
    tables[2] = tables[2].replace("0.8", "0.7")
    other: dict[str, Any] = {**flags, "phases": phases(tmp_path, *tables)}
    with pytest.raises(ConfigError, match="audio_dropout of step 7 was 0.8, is 0.7"):
        train(settings(data, weights, half_way, max_train_steps=9, **other))
    tables[2] = "start_step = 6\ndatasets = ['short']\naudio_dropout = 0.8"
    other = {**flags, "phases": phases(tmp_path, *tables)}
    train(settings(data, weights, half_way, max_train_steps=9, resume_new_data=True, **other))
    assert len(losses(half_way)) == 9


def test_a_run_without_phases_may_go_on_with_some(data: Path, weights: Path, tmp_path: Path,
                                                 caplog: pytest.LogCaptureFixture) -> None:
    """As long as the first of them is what the run was."""
    flags: dict[str, Any] = {"network_args": HEARING}
    train(settings(data, weights, tmp_path / "out", max_train_steps=3, **flags))
    with pytest.raises(ConfigError, match="or the phase of step 3 are not those of the run"):
        train(settings(data, weights, tmp_path / "out", phases=phases(tmp_path, *SHORT_FIRST), **flags))
    with caplog.at_level(logging.INFO):
        train(settings(data, weights, tmp_path / "out", **flags,
                       phases=phases(tmp_path, "start_step = 0", "start_step = 4\ndatasets = ['short']")))
    assert len(losses(tmp_path / "out")) == 5 and "the run goes over to phase 2 at step 5" in caplog.text
