"""Validation as a part of a run: repeated, resumed, failing, interrupted."""

from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import signal
from typing import Any

import pytest

from tests.training.cached_clips import talking
from tests.training.test_validation import SIGMAS, Reports, fit, real_job
from training.callbacks import Callback, Run, RunState
from training.looking.validation import Validation, ValidationSettings
from training.signals import Interrupted


class TwiceLooked(Callback):
    """Measures the same weights a second time."""

    def __init__(self, validation: Validation) -> None:
        self._validation = validation

    def on_start(self, run: Run) -> None:
        self._validation.on_start(run)


def test_two_measurements_of_the_same_weights_are_bit_equal(tmp_path: Path) -> None:
    clips = [talking(tmp_path, name) for name in "ab"]
    job, reports = real_job(clips=clips), Reports()
    validation = Validation(job, clips, ValidationSettings(5, SIGMAS, 100))
    fit(job, reports, validation, TwiceLooked(validation), steps=1)
    first, second, _ = reports.all
    assert first.by_sigma == second.by_sigma and first.loss == second.loss and first.audio == second.audio
    assert (first.words, first.table) == (second.words, second.table) and len(first.by_sigma) == 3


@pytest.mark.parametrize(("step", "measured", "expected"), [
    (2, None, [2, 4, 5]), (2, 2, [4, 5]), (3, 2, [4, 5]), (4, 2, [4, 5]), (4, 4, [5])])
def test_a_resumed_run_measures_its_step_only_where_that_was_due_and_is_missing(
        step: int, measured: int | None, expected: list[int], tmp_path: Path) -> None:
    clips = [talking(tmp_path, name, frames=5) for name in "ab"]
    job, reports = real_job(clips=clips), Reports()
    validation = Validation(job, clips, ValidationSettings(5, (0.5,), 2))
    validation.recall({"measured": measured, "failures": 1})
    fit(job, reports, validation, state=RunState(step=step, epoch=1), is_resumed=True)
    assert [one.step for one in reports.all] == expected
    assert validation.remembered() == {"measured": 5, "failures": 1}


def test_a_measurement_that_fails_is_told_and_counted_and_the_run_goes_on(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clips = [talking(tmp_path, name, frames=5) for name in "ab"]
    (tmp_path / "held").mkdir()
    held_out = talking(tmp_path / "held", "h", frames=5)
    job, reports = real_job(clips=clips), Reports()
    validation = Validation(job, [held_out], ValidationSettings(5, (0.5,), 1))

    class Lost(Callback):
        def on_step(self, run: Run, report: Any) -> None:
            whole, away = tmp_path / "held" / "h.latents.safetensors", tmp_path / "held" / "away"
            if report.step == 1:
                whole.rename(away)
            if report.step == 3:
                away.rename(whole)

    loop = fit(job, reports, Lost(), validation, steps=4)
    assert loop.state.step == 4 and [one.step for one in reports.all] == [0, 3, 4] and validation.failures == 2
    assert "step 1: the held-out clips could not be measured (h.mp4@0: " in caplog.text
    assert "Failed so far: 2" in caplog.text
    assert all(module.training for module in job.network.modules())


def test_a_signal_ends_a_measurement_at_once_and_it_is_made_again(tmp_path: Path) -> None:
    clips = [talking(tmp_path, name, frames=5) for name in "ab"]
    job, reports = real_job(clips=clips), Reports()
    validation = Validation(job, clips, ValidationSettings(5, (0.5,), 2))
    passes = 0

    def interrupt(*_: Any) -> None:
        nonlocal passes
        if not job.network.training:
            passes += 1
            if passes == 3:  # two at the start, the third at step 2
                os.kill(os.getpid(), signal.SIGTERM)

    job.dit.register_forward_hook(interrupt)
    with pytest.raises(Interrupted):
        fit(job, reports, validation)
    assert passes == 3 and [one.step for one in reports.all] == [0]
    assert validation.remembered() == {"measured": 0, "failures": 0} and job.network.training


def test_a_signal_while_the_trained_weights_are_put_back_waits_until_they_are(tmp_path: Path) -> None:
    clips = [talking(tmp_path, name, frames=5) for name in "ab"]
    job, back = real_job(clips=clips), []

    @contextmanager
    def averaged() -> Iterator[None]:
        yield
        os.kill(os.getpid(), signal.SIGTERM)
        back.append(True)

    with pytest.raises(Interrupted):
        fit(job, Validation(job, clips, ValidationSettings(5, (0.5,), 10), as_saved=averaged), steps=3)
    assert back[0]
