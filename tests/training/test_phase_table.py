"""The file of phases: what it may say, and what is said of what it may not."""

import logging
from pathlib import Path
from typing import Any

import pytest

from common.errors import ConfigError
from training.config import TrainConfig
from training.phase_table import PhaseEntry, read_phases

NAMES = ("480p", "720p", "pictures")
TWO = """
[[phases]]
start_step = 0
datasets = ["480p"]

[[phases]]
start_step = {start}
datasets = {{ "480p" = 0.5, "720p" = {share} }}
"""


def read(folder: Path, text: str, names: tuple[str, ...] = NAMES, **flags: Any) -> tuple[PhaseEntry, ...]:
    path = folder / "phases.toml"
    path.write_text(text, encoding="utf-8")
    return read_phases(TrainConfig.from_flags(**{"dataset_config": "data.toml", "dit": "a", "output_dir": "b",
                                                 "phases": path, "max_train_steps": 200, **flags}), names)


def test_without_the_flag_there_are_none() -> None:
    assert read_phases(TrainConfig.from_flags(dataset_config="a", dit="a", output_dir="b"), NAMES) == ()


def test_two_phases_with_their_steps_and_shares(tmp_path: Path) -> None:
    first, second = read(tmp_path, TWO.format(start=5, share=0.5))
    assert (first.number, first.start_step, first.end_step, dict(first.datasets)) == (1, 0, 5, {"480p": None})
    assert (second.number, second.start_step, second.end_step) == (2, 5, 200)
    assert dict(second.datasets) == {"480p": 0.5, "720p": 0.5} and second.where.endswith("phases.toml line 6")


def test_an_entry_of_probability_0_is_left_out_and_no_names_are_all(tmp_path: Path) -> None:
    first, second = read(tmp_path, """
[[phases]]
start_step = 0
[phases.datasets]
480p = 1
720p = 0
[[phases]]
start_step = 9
""")
    assert dict(first.datasets) == {"480p": 1} and dict(second.datasets) == {}


def test_what_a_phase_sets_stands_over_what_the_run_says(tmp_path: Path) -> None:
    first, second = read(tmp_path, """
[[phases]]
start_step = 0
[[phases]]
start_step = 100
audio_dropout = 0.3
prefix_frames = [1, 5, 9]
random_length = false
max_tokens = 900
discrete_flow_shift = 7
max_timestep = 900
""", prefix_frames=[1, 5], prefix_weights=[1, 2], random_length=True, min_frames=21, text_dropout=0.2,
                         discrete_flow_shift=3, min_timestep=10)
    assert first.showing.prefix_weights == [1, 2] and first.showing.min_frames == 21 and not first.overrides
    assert (second.showing.audio_dropout, second.showing.text_dropout, second.showing.max_tokens) == (0.3, 0.2, 900)
    assert second.showing.prefix_frames == [1, 5, 9] and second.showing.prefix_weights is None
    assert not second.showing.random_length and second.showing.min_frames is None
    assert (second.noise.discrete_flow_shift, second.noise.min_timestep, second.noise.max_timestep) == (7, 10, 900)


@pytest.mark.parametrize(("text", "words"), [
    ("", r"no \[\[phases\]\] table"),
    ("phases = 3", r"no \[\[phases\]\] table"),
    ("[[phase]]\nstart_step = 0", r"line 1: unknown key or table 'phase' \(nearest: 'phases'\)"),
    ("[[phases]]", "line 1: phase 1: no start_step; it must be the number of optimiser steps"),
    ("[[phases]]\nstart_step = 0.5", "line 2: phase 1: start_step = 0.5; it must be"),
    ("[[phases]]\nstart_step = 3", "line 2: phase 1: start_step = 3; the first phase starts at 0"),
    ("[[phases]]\nstart_step = 0\nstart = 1", r"line 3: phase 1: unknown key 'start' \(nearest: 'start_step'\)"),
    ("[[phases]]\nstart_step = 0\nenabled = 1", "line 3: phase 1: enabled = 1 is not true or false"),
    ("[[phases]]\nstart_step = 0\nenabled = false", "no phase is enabled"),
    ("[[phases]]\nstart_step = 0\ndatasets = 3", "line 3: phase 1: datasets = 3 is neither a list"),
    ("[[phases]]\nstart_step = 0\ndatasets = ['720']",
     r"line 3: phase 1: datasets: '720' is no entry of data.toml \(nearest: '720p'\). Its entries: 480p, 720p"),
    ("[[phases]]\nstart_step = 0\ndatasets = ['480p', '480p']", "names '480p' twice"),
    ("[[phases]]\nstart_step = 0\ndatasets = {480p = 0.5, 720p = 0.6}", "probabilities 0.5, 0.6 are 1.1 together"),
    ("[[phases]]\nstart_step = 0\ndatasets = {480p = -0.5, 720p = 1.5}", "480p = -0.5, 720p = 1.5: a probability lies"),
    ("[[phases]]\nstart_step = 0\ndatasets = {480p = true}", "480p = True: a probability lies"),
    ("[[phases]]\nstart_step = 0\naudio_dropout = 'x'", "line 3: phase 1: audio_dropout: 'x' is not a number"),
    ("[[phases]]\nstart_step = 0\naudio_dropout = 2", "line 3: phase 1: audio_dropout: 2 should be less than"),
    ("[[phases]]\nstart_step = 0\nprefix_frames = [4]", "line 1: phase 1: --prefix_frames 4: lengths are 4n"),
    ("[[phases]]\nstart_step = 0\nmin_frames = 21", "line 1: phase 1: --min_frames is the shortest length of --random"),
    ("[[phases]]\nstart_step = 0\nmin_timestep = 900\nmax_timestep = 100", "line 1: phase 1: --min_timestep 900 must"),
    ("[[phases]]\nstart_step = 0\n[[phases]]\nstart_step = 9\n[[phases]]\nstart_step = 9",
     "line 6: phase 3: start_step = 9, and phase 2 starts at 9"),
    ("[[phases]\n", "not valid TOML"),
])
def test_what_is_wrong_is_told_with_its_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, text)


def test_everything_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "[[phases]]\nstart_step = -1\nshow = 1\n[[phases]]\nstart_step = 4\ndatasets = ['none']\n"
                       "text_dropout = 9\ndiscrete_flow_shift = 0\n", max_train_epochs=2)
    text = str(caught.value)
    assert "6 problems" in text and all(f"line {line}: phase" in text for line in (2, 3, 6, 7, 8))
    assert "--max_train_epochs with --phases" in text


def test_entries_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="2 entries of data.toml are called 'clips' .* Give each a name"):
        read(tmp_path, "[[phases]]\nstart_step = 0\ndatasets = ['clips']", ("clips", "clips"))
    assert len(read(tmp_path, "[[phases]]\nstart_step = 0", ("clips", "clips"))) == 1


def test_a_phase_behind_the_end_is_told_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [only] = read(tmp_path, TWO.format(start=5000, share=0.5), max_train_steps=1600)
    assert only.end_step == 1600
    assert "phase 2 is never reached: it starts at 5000, the run has 1600 steps" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING
    assert len(read(tmp_path, TWO.format(start=1600, share=0.5), max_train_steps=1600)) == 1
    assert len(read(tmp_path, TWO.format(start=1599, share=0.5), max_train_steps=1600)) == 2


def test_a_phase_that_is_switched_off_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The source's phase two with max_hw 720, which takes no step from the large list."""
    [only] = read(tmp_path, TWO.format(start=5, share=0.5) + "enabled = false\n")
    assert (only.number, only.end_step) == (1, 200) and "phase 2 disabled" in caplog.text


def test_tables_in_the_settings_file_are_sent_to_a_file_of_their_own(tmp_path: Path) -> None:
    from common.config import parse

    settings = tmp_path / "settings.toml"
    settings.write_text('dataset_config = "a"\ndit = "a"\noutput_dir = "a"\n[[phases]]\nstart_step = 0\n')
    with pytest.raises(ConfigError, match="phases: .*tables stand in a file of their own"):
        parse(TrainConfig, ["--config_file", str(settings)], prog="train_network.py", description="")
