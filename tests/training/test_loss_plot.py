"""The picture and the table of a run's course, from metrics.jsonl."""

import json
from pathlib import Path

import pytest

import tests.training.line
from tests.training.line import DATA, Line, Saves, fit, go_on
from training.callbacks import Callback, Run, StepReport
from training.telling.loss_plot import (
    PICTURE,
    TABLE,
    LossHistory,
    Lowest,
    best_of,
    draw_history,
    history_table,
    lowest_of,
    read_history,
    thinned,
)
from training.telling.reports import StepLog

PNG = b"\x89PNG\r\n\x1a\n"


class Measured(tests.training.line.Measured):
    """Measures after every step, not at the start."""

    def __init__(self, *losses: float, gap: float | None = 0.01) -> None:
        super().__init__(0.0, *losses, gap=gap)

    def on_start(self, run: Run) -> None:
        pass


def trained(folder: Path, *losses: float, name: str = "run", gap: float | None = 0.01) -> None:
    fit(Line(DATA), StepLog(folder, name), LossHistory(folder, name), Measured(*losses, gap=gap), steps=len(losses))


def test_picture_and_table_are_written_at_validations_and_at_the_end(tmp_path: Path) -> None:
    trained(tmp_path, 0.5, 0.3, 0.4)
    assert (tmp_path / PICTURE).read_bytes().startswith(PNG)
    table = json.loads((tmp_path / TABLE).read_text())
    (run,) = table["runs"]
    assert run["step"] == [1, 2, 3] and len(run["loss"]) == 3 and run["offset"] == 0
    assert [one["held_out_loss"] for one in run["validation"]] == [0.5, 0.3, 0.4]
    assert run["validation"][0]["audio_gap"] == pytest.approx(0.01) and run["validation"][0]["null_gap"] is None
    assert table["lowest_held_out_loss"] == {"place": 2, "held_out_loss": 0.3}
    assert sorted(path.name for path in tmp_path.iterdir()) == [TABLE, PICTURE, "metrics.jsonl"]


def test_they_are_up_to_date_at_every_validation(tmp_path: Path) -> None:
    class Look(Measured):
        def on_step(self, run: Run, report: StepReport) -> None:
            super().on_step(run, report)
            seen.append(len(json.loads((tmp_path / TABLE).read_text())["runs"][0]["validation"]))

    seen: list[int] = []
    fit(Line(DATA), StepLog(tmp_path, "run"), LossHistory(tmp_path, "run"), Look(0.5, 0.4), steps=2)
    assert seen == [1, 2]


def test_a_second_run_in_the_folder_goes_on_with_the_curves(tmp_path: Path) -> None:
    trained(tmp_path, 0.5, 0.3, 0.4, name="first")
    trained(tmp_path, 0.25, 0.6, name="second")
    table = json.loads((tmp_path / TABLE).read_text())
    assert [(run["run"], run["offset"], run["step"]) for run in table["runs"]] == [
        ("first", 0, [1, 2, 3]), ("second", 3, [1, 2])]
    assert table["lowest_held_out_loss"] == {"place": 4, "held_out_loss": 0.25}


def test_a_run_that_goes_on_counting_lies_on_the_same_steps(tmp_path: Path) -> None:
    lines = [{"event": "start", "run": "a", "first_step": 1}, {"step": 1, "loss": 1.0, "loss_average": 1.0},
             {"step": 2, "loss": 0.9, "loss_average": 0.95}, {"event": "start", "run": "a", "first_step": 3},
             {"step": 3, "loss": 0.8, "loss_average": 0.9}, {"event": "start", "run": "b", "first_step": 1}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(run.name, run.offset) for run in read_history(tmp_path / "metrics.jsonl")] == [
        ("a", 0), ("a", 0), ("b", 3)]


def test_without_validation_there_is_the_loss_alone(tmp_path: Path) -> None:
    fit(Line(DATA), StepLog(tmp_path, "run"), LossHistory(tmp_path, "run"), steps=4)
    runs = read_history(tmp_path / "metrics.jsonl")
    assert history_table(runs)["lowest_held_out_loss"] is None and best_of(runs) is None
    assert (tmp_path / PICTURE).read_bytes().startswith(PNG)


def test_gaps_have_a_panel_of_their_own(tmp_path: Path) -> None:
    from PIL import Image

    heights = {}
    for name, gap in (("with", 0.01), ("without", None)):
        (tmp_path / name).mkdir()
        trained(tmp_path / name, 0.5, 0.4, gap=gap)
        heights[name] = Image.open(tmp_path / name / PICTURE).size[1]
    assert heights == {"with": 1650, "without": 1275}, "losses and levels; gaps below them"


def test_a_loss_that_is_no_number_is_null_and_not_drawn(tmp_path: Path) -> None:
    trained(tmp_path, float("nan"), 0.4, float("inf"))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    runs = read_history(tmp_path / "metrics.jsonl")
    assert [one["held_out_loss"] for one in runs[0].validations] == [None, 0.4, None]
    assert runs[0].validated("held_out_loss") == ([2], [0.4])
    assert best_of(runs) == lowest_of(runs) == Lowest("held_out_loss", 2, 2, 0.4)
    draw_history(runs, tmp_path / "again.png")


def test_a_line_that_a_killed_run_left_torn_costs_that_line_alone(tmp_path: Path) -> None:
    trained(tmp_path, 0.5, 0.4, name="killed")
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')
    trained(tmp_path, 0.3, name="next")
    assert [(run.name, len(run.steps)) for run in read_history(tmp_path / "metrics.jsonl")] == [
        ("killed", 2), ("next", 1)]


def test_a_run_that_fails_before_its_first_step_leaves_no_picture(tmp_path: Path) -> None:
    class Broken(Line):
        def loss(self, batch: object) -> None:  # type: ignore[override]
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fit(Broken(DATA), StepLog(tmp_path, "run"), LossHistory(tmp_path, "run"), steps=2)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_without_validation_the_minimum_is_the_moving_averages(tmp_path: Path) -> None:
    fit(Line(DATA), StepLog(tmp_path, "run"), LossHistory(tmp_path, "run"), steps=130, lr=0.01)
    (run,) = read_history(tmp_path / "metrics.jsonl")
    lowest = lowest_of([run])
    full = [value for step, value in zip(run.steps, run.averages, strict=True) if step >= 100 and value is not None]
    assert lowest == Lowest("loss_average", 130, 130, min(full)) and full == sorted(full, reverse=True)
    table = json.loads((tmp_path / TABLE).read_text())
    assert table["minimum"] == {"name": "loss_average", "place": 130, "step": 130, "value": min(full)}


def test_a_run_that_is_killed_between_measurements_has_its_history(tmp_path: Path) -> None:
    class Look(Callback):
        def on_step(self, run: Run, report: StepReport) -> None:
            there.append((tmp_path / PICTURE).exists())
            if there[-1]:
                seen.append(json.loads((tmp_path / TABLE).read_text())["runs"][0]["step"][-1])

    there: list[bool] = []
    seen: list[int] = []
    fit(Line(DATA), StepLog(tmp_path, "run"), LossHistory(tmp_path, "run", every=2), Look(), steps=5)
    # Drawn while the step behind a due one is computed.
    assert there == [False, False, True, True, True] and seen == [2, 2, 4]
    assert json.loads((tmp_path / TABLE).read_text())["runs"][0]["step"][-1] == 5


def test_the_picture_has_the_size_of_a_page(tmp_path: Path) -> None:
    from PIL import Image

    fit(Line(DATA), StepLog(tmp_path, "run"), LossHistory(tmp_path, "run"), steps=2)
    assert Image.open(tmp_path / PICTURE).size == (1500, 900)


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    fit(Line(DATA), StepLog(whole, "run"), LossHistory(whole, "run"), steps=6)
    log = StepLog(parts, "run")
    job, saves = Line(DATA), Saves(log)
    fit(job, log, LossHistory(parts, "run"), saves, steps=5)
    state, memory = saves.at[3]
    job = Line(DATA)
    fit(job, steps=3)  # the weights after three steps
    go_on(job, StepLog(parts, "run"), LossHistory(parts, "run"), state=state, memory=memory, steps=6)
    tables = [json.loads((folder / TABLE).read_text()) for folder in (whole, parts)]
    courses = [[pair for run in table["runs"] for pair in zip(run["step"], run["loss"], strict=True)]
               for table in tables]
    assert courses[0] == courses[1] and [step for step, _ in courses[1]] == [1, 2, 3, 4, 5, 6]


def test_a_log_that_nobody_cut_shows_no_step_twice(tmp_path: Path) -> None:
    lines = [{"event": "start", "run": "a", "first_step": 1},
             *({"step": step, "loss": 1.0, "loss_average": 1.0} for step in (1, 2, 3, 4)),
             {"event": "validation", "step": 4, "held_out_loss": 0.1},
             {"event": "start", "run": "a", "first_step": 3}, {"step": 3, "loss": float("inf"), "loss_average": 0.9}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = read_history(tmp_path / "metrics.jsonl")
    assert (first.steps, second.steps, first.validations) == ([1, 2], [3], [])
    assert second.losses == [None] and "Infinity" not in json.dumps(history_table([first, second]))
    draw_history([first, second], tmp_path / "x.png")


def test_a_long_curve_keeps_its_peaks() -> None:
    values = [float((step * 7919) % 1000) for step in range(50_000)]
    values[12_345], values[23_456], values[7] = 5000.0, -5000.0, float("nan")
    places, kept = thinned(range(50_000), values, most=3000)
    assert len(places) <= 3000 and places == sorted(places) and [values[at] for at in places] == kept
    assert (12_345, 5000.0) in zip(places, kept, strict=True) and (23_456, -5000.0) in zip(places, kept, strict=True)
    assert thinned([1, 2], [0.5, 0.6]) == ([1, 2], [0.5, 0.6])


def test_levels_are_read_for_the_picture(tmp_path: Path) -> None:
    trained(tmp_path, 0.5, 0.25)
    (run,) = read_history(tmp_path / "metrics.jsonl")
    assert run.validated_at(0) == (0.5, [1, 2], [0.25, 0.125]) and run.validated_at(1) == (1.0, [1, 2], [0.5, 0.25])
    assert run.validated_at(2) == (0.0, [], [])
