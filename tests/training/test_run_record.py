"""`training_state.json`: readable, whole, and made again where it is spoilt."""

import json
import math
from pathlib import Path

import pytest

from tests.training.line import DATA, Line, Measured, Saves, fit, go_on
from training.checkpoints import CheckpointPlan, Checkpoints
from training.keeping.run_record import FILE, HISTORY, RecordKeeper, RunRecord, move_corrupt, read_record
from training.keeping.states import state_path, write_state

SCHEMA = {"schema": int, "name": str, "run_id": str, "status": str, "reason": str, "step": int, "epoch": int,
          "total_steps": int, "started": str, "updated": str, "starts": int, "states": list, "checkpoints": list,
          "validations": list, "failures": list}


def record(folder: Path, **loop: int) -> dict[str, object]:
    plan = CheckpointPlan(folder, "n", every_steps=1)
    fit(Line(DATA), Checkpoints(plan, lambda path, state: path.write_text("x") and None),
        RecordKeeper(folder, RunRecord(name="n", run_id="r")), **loop)
    return json.loads((folder / FILE).read_text(encoding="utf-8"))


def test_the_file_has_its_schema_and_the_last_ten_checkpoints(tmp_path: Path) -> None:
    values = record(tmp_path, steps=15)
    assert {key: type(value) for key, value in values.items() if key not in ("best", "graphs")} == SCHEMA
    assert (values["status"], values["step"], values["total_steps"], values["starts"]) == ("finished", 15, 15, 1)
    checkpoints = values["checkpoints"]
    assert isinstance(checkpoints, list) and len(checkpoints) == HISTORY == 10
    assert [one["step"] for one in checkpoints] == [*range(7, 16), 15]
    assert "\n  " in (tmp_path / FILE).read_text()


def test_a_run_that_breaks_says_why(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="not finite"):
        fit(Line([1.0, float("nan")]), RecordKeeper(tmp_path, RunRecord(name="n")), steps=2)
    values = json.loads((tmp_path / FILE).read_text())
    assert values["status"] == "failed" and "item nan" in values["reason"]
    assert [one["step"] for one in values["failures"]] == [1]


@pytest.mark.parametrize("spoilt", ["", "{", "[1, 2]", '{"schema": 99}', '{"schema": 1, "step": "twelve"}'])
def test_a_spoilt_file_is_moved_aside_and_made_again(tmp_path: Path, spoilt: str,
                                                     caplog: pytest.LogCaptureFixture) -> None:
    record(tmp_path, steps=3)
    write_state(state_path(tmp_path, "n", 2), {}, {"step": 2, "run_id": "r", "total_steps": 3, "epoch": 1})
    (tmp_path / FILE).write_text(spoilt, encoding="utf-8")
    made = read_record(tmp_path, "n")
    assert (made.step, made.run_id, made.states) == (2, "r", ["n-step00000002-state"])
    assert [one["path"] for one in made.checkpoints][-1] == "n.safetensors"
    assert (tmp_path / FILE).read_text() == spoilt, "reading changes nothing"
    move_corrupt(tmp_path)
    [aside] = [path for path in tmp_path.iterdir() if "corrupt" in path.name]
    assert aside.name.startswith(f"{FILE}.corrupt-") and aside.read_text() == spoilt and aside.name in caplog.text


def test_a_file_of_an_older_writing_is_filled_up(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"schema": 1, "name": "n", "step": 4}', encoding="utf-8")
    assert (made := read_record(tmp_path, "n")) == RunRecord(name="n", step=4, started=made.started)


def test_another_runs_file_is_not_this_ones(tmp_path: Path) -> None:
    record(tmp_path, steps=1)
    assert (made := read_record(tmp_path, "m")) == RunRecord(name="m", started=made.started)


def test_what_was_measured_is_what_the_state_knew(tmp_path: Path) -> None:
    keeper = RecordKeeper(tmp_path, RunRecord(name="n"))
    saves = Saves(keeper)
    fit(Line(DATA), Measured(math.nan, 3.0, 2.0, 1.0), keeper, saves, steps=3)
    values = json.loads((tmp_path / FILE).read_text(), parse_constant=pytest.fail)
    assert values["best"]["step"] == 3 and values["validations"][0]["held_out_loss"] is None
    state, memory = saves.at[2]
    again = RecordKeeper(tmp_path, read_record(tmp_path, "n"))
    go_on(Line(DATA), Measured(0.0, 0.0, 0.0, 2.5), again, state=state, memory=memory, steps=3)
    assert (again.record.best or {})["step"] == 2 and [one["step"] for one in again.record.validations] == [0, 1, 2, 3]
