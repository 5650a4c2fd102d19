"""A run that ends when what is measured no longer improves: to the exact step, with its final files."""

from pathlib import Path

import pytest

from tests.training.line import DATA, Line, Measured, Saves, fit, go_on
from training.callbacks import Callback, Outcome, Run, RunState
from training.checkpoints import CheckpointPlan, Checkpoints
from training.keeping.best import BestCheckpoint, Metric
from training.looking.early_stopping import EarlyStopping, Patience
from training.telling.reports import StepLog

NAN = float("nan")


class Ended(Callback):
    outcome: Outcome

    def on_end(self, run: Run, outcome: Outcome) -> None:
        self.outcome = outcome


def stopped_at(patience: Patience, *losses: float, metric: str = "held_out_loss", gap: float | None = None) -> int:
    stopping = EarlyStopping(patience, Metric(metric))
    return fit(Line(DATA), Measured(*losses, gap=gap), stopping, steps=len(losses) - 1).state.step


def test_three_evaluations_without_improvement_end_the_run_with_three_kinds_of_lines(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = CheckpointPlan(tmp_path, "name", every_epochs=1)
    write = lambda path, state: path.write_text(str(state.step)) and None  # noqa: E731
    ended = Ended()
    with caplog.at_level("INFO"):
        loop = fit(Line(DATA[:4]), Checkpoints(files, write), StepLog(tmp_path, "name"),
                   Measured(1.0, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7), EarlyStopping(Patience(evals=3), Metric()), ended,
                   steps=6)
    assert loop.state.step == 4 and ended.outcome is Outcome.FINISHED
    assert (tmp_path / "name.safetensors").read_text() == "4"
    assert not (tmp_path / "name-000001.safetensors").exists(), "the last epoch is written once, as the final file"
    lines = [line for line in caplog.messages if line.startswith("[early-stop]")]
    assert lines[:2] == ["[early-stop] New best eval 1 at step 0", "[early-stop] New best eval 0.9 at step 1"]
    assert lines[2] == ("[early-stop] no_improve_evals=1, step_delta=1, best_eval=0.9, curr_eval=0.9, min_delta=0, "
                        "patience_steps=0, patience_evals=3")
    assert lines[-1] == "[early-stop] No eval improvement for 3 evaluations. Stopping."
    assert loop.stop_reason == ("early stopping: no better held-out loss for 3 evaluations; best 0.9 at step 1")
    assert '"event": "finished"' in (tmp_path / "metrics.jsonl").read_text() and loop.stop_reason in (
        tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(("patience", "losses", "step"), [
    (Patience(steps=3), (1.0, 0.9, 0.95, 0.95, 0.95, 0.5), 4),  # best at 1, 3 steps back at 4
    (Patience(steps=3), (1.0, 1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 1.0), 6),  # an improvement 3 steps after the best counts
    (Patience(evals=2), (1.0, 1.1, 0.9, 1.1, 1.1), 4),  # an improvement begins the count anew
    (Patience(steps=4, evals=2), (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 2),  # the first of both
    (Patience(steps=2, evals=4), (1.0, 1.0, 1.0, 1.0, 1.0, 1.0), 2),
    (Patience(evals=2, min_delta=0.1), (1.0, 0.95, 0.9, 0.85), 2),  # 1.0 - 0.9 is not more than 0.1
    (Patience(evals=2, min_delta=0.1), (1.0, 0.95, 0.85, 0.8, 0.6, 0.6, 0.6, 0.6), 6),  # 0.8 is counted, 0.6 is one
    (Patience(evals=2), (1.0, NAN, NAN, NAN, 1.1, 1.1), 5),  # what is no number is not looked at
    (Patience(), (1.0, 1.0, 1.0, 1.0), 3),
])
def test_the_run_ends_at_the_step_that_the_rule_says(patience: Patience, losses: tuple[float, ...], step: int) -> None:
    assert stopped_at(patience, *losses) == step


def test_a_gap_is_better_when_it_is_larger() -> None:
    rising, falling = (stopped_at(Patience(evals=2), *[1.0] * 6, metric="audio_gap", gap=gap) for gap in (0.1, -0.1))
    assert (rising, falling) == (5, 2)


def test_what_is_counted_goes_on_after_a_resume() -> None:
    losses = (1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6)
    stopping = EarlyStopping(Patience(evals=4), Metric())
    saves = Saves(stopping)
    whole = fit(Line(DATA), Measured(*losses), stopping, saves, steps=6)
    state, memory = saves.at[3]
    again = EarlyStopping(Patience(evals=4), Metric())
    parts = go_on(Line(DATA), Measured(*losses), again, state=state, memory=memory, steps=6)
    assert whole.state.step == parts.state.step == 5
    assert whole.stop_reason == parts.stop_reason and again.remembered() == stopping.remembered() == {
        "best": 0.5, "best_step": 1, "count": 4, "since": 1, "basis": "held_out_loss ", "total_steps": 6,
        "stopped": "early stopping: no better held-out loss for 4 evaluations; best 0.5 at step 1"}


class Kept:
    """Notes which step was written, into a file that is whole or absent."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def __call__(self, path: Path, state: RunState) -> None:
        self.steps.append(state.step)
        path.write_text(str(state.step))


def test_the_best_network_is_kept_and_no_rotation_takes_it(tmp_path: Path) -> None:
    files = CheckpointPlan(tmp_path, "name", every_steps=1, keep_steps=1)
    kept = Kept()
    best = BestCheckpoint(files.best, kept, Metric())
    fit(Line(DATA), Checkpoints(files, Kept()), best, Measured(1.0, 0.9, 0.95, 0.8, 0.8, NAN, 0.85, 0.9), steps=7)
    assert kept.steps == [1, 3] and (tmp_path / "name-best.safetensors").read_text() == "3"
    assert (best.step, best.value, best.is_written) == (3, 0.8, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "name-best.safetensors", "name-step00000006.safetensors", "name-step00000007.safetensors", "name.safetensors"]


def test_what_the_run_starts_from_is_the_bar_and_an_earlier_runs_file_stays_until_it_is_beaten(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, kept = tmp_path / "name-best.safetensors", Kept()
    path.write_text("earlier")
    worse = BestCheckpoint(path, kept, Metric())
    fit(Line(DATA), worse, Measured(0.5, 0.6, 0.7), steps=2)
    assert "is of an earlier run" in caplog.text and path.read_text() == "earlier"
    assert (worse.step, worse.is_written) == (0, False)
    fit(Line(DATA), BestCheckpoint(path, kept, Metric()), Measured(0.5, 0.6, 0.4), steps=2)
    assert path.read_text() == "2"


def test_a_resumed_run_keeps_its_best_until_it_is_beaten(tmp_path: Path) -> None:
    path, kept = tmp_path / "name-best.safetensors", Kept()
    losses = (1.0, 0.5, 0.6, 0.55, 0.4)
    best = BestCheckpoint(path, kept, Metric())
    saves = Saves(best)
    fit(Line(DATA), best, Measured(*losses), saves, steps=3)
    state, memory = saves.at[2]
    again = BestCheckpoint(path, kept, Metric())
    go_on(Line(DATA), again, Measured(*losses), state=state, memory=memory, steps=4)
    assert kept.steps == [1, 4] and again.value == 0.4


def test_another_measure_begins_anew_and_leaves_the_best_file_so_far(tmp_path: Path, caplog: pytest.LogCaptureFixture
                                                                     ) -> None:
    """A loss at other noise levels, or a gap, says nothing beside the loss that was the best."""
    path = tmp_path / "best.safetensors"

    def watchers(metric: str) -> tuple[BestCheckpoint, EarlyStopping]:
        write = lambda path, state: path.write_text(str(state.step)) and None  # noqa: E731
        return BestCheckpoint(path, write, Metric(metric)), EarlyStopping(Patience(evals=2), Metric(metric))

    first = watchers("held_out_loss")
    saves = Saves(*first)
    fit(Line(DATA), Measured(1.0, 0.5, 0.6), *first, saves, steps=2)
    for metric, basis in (("audio_gap", ""), ("held_out_loss", "other levels")):
        path.write_text("1")
        again = watchers(metric)
        state, memory = saves.at[2]
        # The gap is step * 0.01: far below 0.5, and better at each step.
        loop = go_on(Line(DATA), Measured(*[2.0 - step / 10 for step in range(7)], gap=0.01, basis=basis), *again,
                     state=state, memory=memory, steps=6)
        assert loop.state.step == 6 and again[0].step == again[1].best_step == 6 and path.read_text() == "6"
        asides = [one for one in tmp_path.glob("best.safetensors.left-*") if one.read_text() == "1"]
        assert asides and "what is measured has changed" in caplog.text
        for one in asides:
            one.unlink()


@pytest.mark.parametrize(("goes_on", "steps", "end"), [(False, 9, 3), (True, 9, 5), (False, 12, 5)],
                         ids=["again", "continue", "longer"])
def test_a_run_that_had_stopped_ends_at_once_or_has_new_patience(goes_on: bool, steps: int, end: int) -> None:
    """At once: the disk was full when its result was written, say."""
    losses = (1.0, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6)
    first = EarlyStopping(Patience(evals=2), Metric())
    whole = fit(Line(DATA), Measured(*losses), first, steps=9)
    assert whole.state.step == 3
    again = EarlyStopping(Patience(evals=2), Metric(), goes_on=goes_on)
    loop = go_on(Line(DATA), Measured(*losses), again, state=whole.state, memory={"early_stopping": first.remembered()},
                 steps=steps)
    assert loop.state.step == end and loop.stop_reason == (
        "early stopping: no better held-out loss for 2 evaluations; best 0.5 at step 1")
