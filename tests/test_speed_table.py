"""The table of goals from lines of results."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.dit_rows import GROUPS, ROWS, chosen
from benchmarks.records import Records, lines_of
from benchmarks.speed_table import GOALS, key_of, latest, table, with_estimates
from benchmarks.vae_speed import WAYS, Bench, compare
from wan.modules.vae_coders import VaeShape


def measured(records: Records, name: str, seconds: float, gib: float) -> None:
    row = next(one for one in ROWS if name in one.name)
    records.add("dit", row=row.name, asked=asdict(row), seconds=seconds, allocated_gib=gib, reserved_gib=gib,
                settings={"activations": "full", "swapped": 0, "offloads": False, "rank": 32})


def row_of(text: str, start: str) -> list[str]:
    return [cell.strip() for line in text.splitlines() if line.startswith(f"| {start}") for cell in line.split("|")]


def test_a_goal_is_passed_by_the_fastest_row_that_keeps_within_its_memory(tmp_path: Path) -> None:
    records = Records(tmp_path, commit="abc")
    records.ceilings = {"matmul": 790.4, "attention": 571.0, "attention_backward": 532.0}
    measured(records, "i2v-14B 480x832x81: FA4, fp8 products, fits 44 GiB", 8.2, 45.0)
    measured(records, "i2v-14B 480x832x81: cuDNN, fp8 products, fits 44 GiB", 8.9, 43.0)
    measured(records, "i2v-14B 480x832x81: plain path", 17.8, 39.0)
    cells = row_of(table(tmp_path), "same, at most 44 GiB")
    assert cells[5:9] == ["8.900 s", "43.0 / 43.0", "0.500", "yes"]
    assert cells[10] == "790 / 571 / 532"
    measured(records, "i2v-14B 480x832x81: cuDNN, fp8 products, fits 44 GiB", 9.1, 43.0)
    assert row_of(table(tmp_path), "same, at most 44 GiB")[8] == "no", "the last measurement of a row counts"


def test_the_24_gb_step_is_compared_with_the_unswapped_one(tmp_path: Path) -> None:
    records = Records(tmp_path, commit="abc")
    measured(records, "t2v-14B 480x832x81: 24 GB", 11.0, 20.0)
    assert row_of(table(tmp_path), "14B step at 480x832x81 in 24 GB")[5] == "not measured"
    measured(records, "t2v-14B 480x832x81: cuDNN, fp8 products, all recomputed", 10.0, 37.0)
    assert row_of(table(tmp_path), "14B step at 480x832x81 in 24 GB")[5:9] == ["1.100 x (11.00 s)", "20.0 / 20.0", "",
                                                                              "stretch"]


def test_a_failure_takes_no_measurement_away_and_estimates_find_their_row(tmp_path: Path) -> None:
    records = Records(tmp_path, commit="abc")
    measured(records, "t2v-1.3B 480x832x81: plain path", 2.0, 10.0)
    line: dict[str, Any] = next(lines_of(tmp_path))
    records.add("dit", row=line["row"], error="OutOfMemoryError: no")
    records.add("estimates", of=key_of(line), estimates={"planner_gib": 10.2, "preflight_gib": 9.9})
    assert [one["seconds"] for one in latest(lines_of(tmp_path))] == [2.0]
    assert with_estimates(lines_of(tmp_path))[0]["estimates"]["planner_gib"] == 10.2
    assert "10.2 (+2.0 %) | 9.9 (-1.0 %)" in table(tmp_path)


def test_every_goal_of_the_dit_has_a_row_and_a_group_shares_its_model() -> None:
    keys = {row.goal for row in ROWS}
    for goal in GOALS:
        if not goal.work.startswith(("VAE", "cache", "14B clip")):
            assert {*goal.keys, *goal.stretch_keys} <= keys, goal.work
    assert all(len({(row.task, row.fp8) for row in group}) == 1 for group in GROUPS)
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert [ROWS[number].name for number in chosen(ROWS, ["0", "48 gb"])] == [
        ROWS[0].name, "t2v-14B 480x832x81: 48 GB, --memory auto, fp8 products"]


def test_the_vae_rows_come_before_the_plain_path_and_are_compared_with_it(tmp_path: Path) -> None:
    bench = Bench("cpu", (81, 480, 832), VaeShape(), 1, Records(tmp_path, commit="abc"), [])
    bench.add(what="encode", way="bf16 fused, tuned", s=0.4, peak_gib=7.3)
    bench.add(what="encode", way="bf16 compiled, tuned", failed="no compiler")
    assert row_of(table(tmp_path), "VAE encode")[5:9] == ["0.400 s", "7.3", "", "yes"]
    bench.add(what="encode", way="fp32 plain", s=1.6, peak_gib=7.6)
    compare(bench, "encode")
    assert row_of(table(tmp_path), "VAE encode")[5:9] == ["0.400 s", "7.3", "0.250", "yes"]
    assert row_of(table(tmp_path), "VAE decode")[5] == "not measured"


def test_tuned_ways_of_the_vae_come_before_untuned_ones_of_the_same_forms() -> None:
    """What was guessed first in a process would not be tried any more."""
    for dtype in {way.dtype for way in WAYS}:
        tuned = [way.speed.tuned for way in WAYS
                 if way.dtype is dtype and way.speed and (way.speed.fused or way.speed.channels_last)]
        assert tuned == sorted(tuned, reverse=True) and set(tuned) == {True, False}
