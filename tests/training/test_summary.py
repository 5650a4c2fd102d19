"""The page that a run leaves: written whatever ended it, with what was measured and how to go on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from tests.training.line import DATA, Line, Measured, Saves, fit, go_on
from training.callbacks import Callback, LevelFigures, Outcome, Run, StepReport, ValidationReport
from training.loop import NonFiniteLoss
from training.signals import Interrupted
from training.telling.noise_levels import LevelRow
from training.telling.reports import StepLog
from training.telling.summary import PAGE, RunSummary, Sources, error_words, failures_of, files_in


def page(folder: Path) -> str:
    return (folder / PAGE).read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """Cells of all tables."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def summary(folder: Path, **more: Any) -> RunSummary:
    return RunSummary(Sources(folder, "talking", (("task", "t2v-14B"), ("clips", "3 | 4")), **{
        "go_on": lambda outcome: f"command after {outcome.value}", **more}))


def test_a_finished_run_tells_its_course_and_its_measurements(tmp_path: Path) -> None:
    (tmp_path / "talking.safetensors").write_bytes(b"x" * 2048)
    (tmp_path / "states").mkdir()
    levels = [LevelRow(0.0, 0.5, 3, 0.75, 0.5, 1.25), LevelRow(0.5, 1.0, 0, 0.0, 0.5, None)]
    told = summary(tmp_path, best=lambda: "`talking-best.safetensors`: step 2", noise_levels=lambda: levels,
                   failures=lambda: {"Validation": 2})
    fit(Line(DATA), StepLog(tmp_path, "run"), Measured(0.5, 0.4, 0.2, 0.3, 0.35, gap=0.5), told, steps=4, lr=0.0)
    text, cells = page(tmp_path), rows(page(tmp_path))
    assert text.startswith("# talking: finished\n\nFinished at step 4 of 4.\n")
    assert ["task", "t2v-14B"] in cells and "| clips | 3 \\| 4 |" in text
    losses = (torch.tensor([[value, 1.0] for value in DATA[:4]]) @ Line(DATA).weight.detach()).pow(2).sum(1).tolist()
    first, last = sum(losses[:2]) / 2, sum(losses[2:]) / 2
    assert ["training loss", f"{first:.4f} at the start, {last:.4f} at the end (means of 2 steps each)"] in cells
    assert ["steps", "4 of 4"] in cells and ["samples seen", "4"] in cells
    assert ["", "all", "0.5", "1"] in cells
    assert ["loss, first (step 0)", "0.5000", "0.2500", "0.5000"] in cells
    assert ["loss, lowest loss (step 2)", "0.2000", "0.1000", "0.2000"] in cells
    assert ["loss, last (step 4)", "0.3500", "0.1750", "0.3500"] in cells
    assert ["audio gap, last (step 4)", "+2", "+2", "+2"] in cells
    assert ["0 to 0.5", "3", "75.0%", "50.0%", "1.2500"] in cells and ["0.5 to 1", "0", "0.0%", "50.0%", ""] in cells
    assert "- Validation: 2" in text and "`talking-best.safetensors`: step 2" in text
    assert "- `talking.safetensors` (2.0 KiB)" in text and "- `states/`" in text and "- `metrics.jsonl` (" in text
    assert "```\ncommand after finished\n```" in text and "memory peak" not in text


def test_a_run_that_fails_tells_the_error_and_the_way_on(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLoss):
        fit(Line([1.0, 2.0, float("nan"), 3.0]), StepLog(tmp_path, "run"), summary(tmp_path), steps=4, lr=0.01)
    text = page(tmp_path)
    assert "# talking: failed\n\nFailed after step 2 of 4: step 3: the loss is not finite" in text
    assert "command after failed" in text and ["steps", "2 of 4"] in rows(text)


def test_a_run_that_is_interrupted_tells_by_what(tmp_path: Path) -> None:
    class Stopped(Line):
        def loss(self, batch: list[torch.Tensor]) -> Any:
            raise Interrupted(15)

    with pytest.raises(Interrupted):
        fit(Stopped(DATA), StepLog(tmp_path, "run"), summary(tmp_path), steps=4)
    text = page(tmp_path)
    assert "Interrupted after step 0 of 4: stopped by SIGTERM." in text and "command after interrupted" in text
    assert "training loss" not in text, "nothing was trained"


def test_a_run_that_fails_before_its_first_step_has_a_page_too(tmp_path: Path) -> None:
    class Broken(Callback):
        def on_start(self, run: Run) -> None:
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fit(Line(DATA), Broken(), StepLog(tmp_path, "run"), summary(tmp_path), steps=1)
    assert "Failed after step 0 of 1: OSError: disk" in page(tmp_path)


def test_a_run_that_was_stopped_tells_why(tmp_path: Path) -> None:
    class Enough(Callback):
        def on_step(self, run: Run, report: StepReport) -> None:
            run.stop("enough")

    fit(Line(DATA), Enough(), StepLog(tmp_path, "run"), summary(tmp_path), steps=4)
    assert "Finished at step 1 of 4, before the last one: enough." in page(tmp_path)


def test_all_sittings_of_a_resumed_run_are_in_the_page_and_earlier_runs_are_not(tmp_path: Path) -> None:
    fit(Line([9.0] * 3), StepLog(tmp_path, "before"), Measured(0.1, 0.1, 0.1), steps=2)
    log = StepLog(tmp_path, "run")
    saves = Saves(log)
    fit(Line(DATA), log, Measured(*[0.5] * 5), saves, steps=4, lr=0.0)
    state, memory = saves.at[2]
    go_on(Line(DATA), StepLog(tmp_path, "run"), Measured(*[0.4] * 5), summary(tmp_path), state=state, memory=memory,
          steps=4, lr=0.0)
    cells = rows(page(tmp_path))
    losses = (torch.tensor([[value, 1.0] for value in DATA[:4]]) @ Line(DATA).weight.detach()).pow(2).sum(1).tolist()
    assert ["training loss", f"{sum(losses[:2]) / 2:.4f} at the start, {sum(losses[2:]) / 2:.4f} at the end "
            "(means of 2 steps each)"] in cells
    assert ["steps", "4 of 4 (2 in this sitting)"] in cells
    assert ["loss, first (step 0)", "0.5000", "0.2500", "0.5000"] in cells
    assert ["loss, lowest loss (step 3)", "0.4000", "0.2000", "0.4000"] in cells


def test_failures_are_those_of_callbacks_that_count_some() -> None:
    class Counts(Callback):
        failures = 3

    class CountsNone(Counts):
        failures = 0

    assert failures_of([Callback(), Counts(), CountsNone()]) == {"Counts": 3}


def test_errors_are_told_as_a_user_reads_them() -> None:
    assert error_words(UserError("mend it")) == "mend it" and error_words(KeyError("x")) == "KeyError: 'x'"
    assert error_words(KeyboardInterrupt()) == "stopped by SIGINT." and error_words(None) == "no error was told."


def test_many_files_are_counted(tmp_path: Path) -> None:
    for number in range(63):
        (tmp_path / f"{number:02d}.safetensors").touch()
    (tmp_path / ".hidden").touch()
    found = list(files_in(tmp_path))
    assert found[0] == "- `00.safetensors` (0 bytes)" and found[-1] == "- and 3 more" and len(found) == 61


def test_the_outcome_chooses_the_command(tmp_path: Path) -> None:
    asked: list[Outcome] = []
    told = summary(tmp_path, go_on=lambda outcome: asked.append(outcome) or "")
    fit(Line(DATA), told, steps=1)
    assert asked == [Outcome.FINISHED] and "How to go on" not in page(tmp_path)


def test_measurements_at_other_noise_levels_do_not_stand_in_one_table(tmp_path: Path) -> None:
    log = StepLog(tmp_path, "run")

    class Other(Callback):
        def on_step(self, run: Run, report: StepReport) -> None:
            run.validated(ValidationReport(report.step, 1, 0.9, 2, None, "", 0.1, (LevelFigures(0.95, 0.9),)))

    fit(Line(DATA), log, Measured(0.5, 0.4), summary(tmp_path), steps=1, lr=0.0)
    fit(Line(DATA), log, Other(), summary(tmp_path), steps=2, lr=0.0)
    cells = rows(page(tmp_path))
    assert ["", "all", "0.95"] in cells
    assert [row for row in cells if row[0].startswith("loss, ")] == [
        [f"loss, {name} (step {step})", "0.9000", "0.9000"]
        for name, step in (("first", 1), ("lowest loss", 1), ("last", 2))]
