"""What a user sees of a run: lines, the bar, memory, and a log that has each step once."""

import io
import json
from pathlib import Path
import re
import sys
from typing import Any

import pytest
import torch

from tests.training.line import DATA, Line, Measured, Saves, fit, go_on
from training.callbacks import Callback, Run, RunState, StepReport
from training.telling.memory_report import GIB, DeviceMemory, Smi, device_memory
from training.telling.reports import ProgressLine, StepLog


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def steps_of(folder: Path) -> list[int]:
    return [line["step"] for line in lines_of(folder) if "event" not in line]


class Photograph(Callback):
    """Keeps the log as it is on disk after a step: what a kill at that moment would leave."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step
        self.content = b""

    def on_step(self, run: Run, report: StepReport) -> None:
        if report.step == self.step:
            self.content = self.path.read_bytes()


def killed(folder: Path, *, saved: int, at: int) -> tuple[RunState, dict[str, Any]]:
    """A run that saved its state after step `saved` and was killed while it wrote the line behind step `at`."""
    log = StepLog(folder, "run")
    photograph, saves = Photograph(log.path, at), Saves(log)
    fit(Line(DATA), log, Measured(*[0.5] * 9), photograph, saves, steps=8)
    log.path.write_bytes(photograph.content + b'{"step": 99, "lo')
    return saves.at[saved]


@pytest.mark.parametrize(("saved", "at"), [(3, 3), (3, 6), (1, 2), (7, 7)])
def test_after_a_kill_a_resumed_run_has_each_step_and_measurement_once(saved: int, at: int, tmp_path: Path) -> None:
    state, memory = killed(tmp_path, saved=saved, at=at)
    go_on(Line(DATA), StepLog(tmp_path, "run"), Measured(*[0.5] * 9), state=state, memory=memory, steps=8)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line["step"] for line in lines_of(tmp_path) if line.get("event") == "validation"] == list(range(9))
    assert [line["first_step"] for line in lines_of(tmp_path) if line.get("event") == "start"] == [1, saved + 1]


def test_a_run_may_be_killed_and_resumed_again_and_again(tmp_path: Path) -> None:
    state, memory = killed(tmp_path, saved=2, at=5)
    log = StepLog(tmp_path, "run")
    saves = Saves(log)
    go_on(Line(DATA), log, saves, state=state, memory=memory, steps=6)
    for later in (4, 3):
        state, memory = saves.at[later]
        go_on(Line(DATA), StepLog(tmp_path, "run"), state=state, memory=memory, steps=7)
        assert steps_of(tmp_path) == [1, 2, 3, 4, 5, 6, 7]


def test_what_an_interrupted_run_wrote_last_stays(tmp_path: Path) -> None:
    """Its state is saved when it ends, after the log was closed."""
    class AtTheEnd(Callback):
        def on_end(self, run: Run, outcome: Any) -> None:
            ends.append((RunState(run.state.step, 1, True, 0, run.state.step), {"metrics": log.remembered()}))

    class Interrupted(Line):
        def loss(self, batch: list[torch.Tensor]) -> Any:
            if len(self.seen) == 3:
                raise KeyboardInterrupt
            return super().loss(batch)

    ends: list[tuple[RunState, dict[str, Any]]] = []
    log = StepLog(tmp_path, "run")
    with pytest.raises(KeyboardInterrupt):
        fit(Interrupted(DATA), log, AtTheEnd(), steps=5)
    ((state, memory),) = ends
    go_on(Line(DATA), StepLog(tmp_path, "run"), state=state, memory=memory, steps=5)
    assert steps_of(tmp_path) == [1, 2, 3, 4, 5]
    assert [line["event"] for line in lines_of(tmp_path) if "event" in line] == [
        "start", "interrupted", "start", "finished"]


def test_a_log_that_is_gone_or_shorter_is_told_and_begun_or_gone_on_with(tmp_path: Path,
                                                                         caplog: pytest.LogCaptureFixture) -> None:
    state, memory = killed(tmp_path, saved=3, at=5)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:200])
    go_on(Line(DATA), StepLog(tmp_path, "run"), state=state, memory=memory, steps=5)
    assert f"holds 200 bytes, and the saved state knew {memory['metrics']['bytes']}" in caplog.text
    path.unlink()
    go_on(Line(DATA), StepLog(tmp_path, "run"), state=state, memory=memory, steps=5)
    assert "holds 0 bytes" in caplog.text and steps_of(tmp_path) == [4, 5]


@pytest.mark.parametrize("kind", ["another run", "another file"])
def test_lines_that_are_not_its_own_are_never_cut(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, memory = killed(tmp_path, saved=3, at=3)
    if kind == "another run":
        fit(Line(DATA), StepLog(tmp_path, "other"), steps=4)
    else:
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"note": "x" * 5000}) + "\n")
    before = (tmp_path / "metrics.jsonl").read_bytes()
    go_on(Line(DATA), StepLog(tmp_path, "run"), state=state, memory=memory, steps=5)
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(before) and "nothing is cut" in caplog.text


def test_figures_that_are_no_numbers_are_null(tmp_path: Path) -> None:
    fit(Line(DATA), StepLog(tmp_path, "run"), Measured(0.5, float("nan"), float("inf"), gap=float("nan")), steps=2)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    last = [line for line in lines_of(tmp_path) if line.get("event") == "validation"][-1]
    assert last["held_out_loss"] is None and last["audio_gap"] is None
    assert last["by_sigma"] == [{"sigma": sigma, "held_out_loss": None, "audio_gap": None} for sigma in (0.5, 1.0)]


def test_the_levels_of_a_measurement_are_in_the_log_and_on_the_screen(tmp_path: Path,
                                                                     caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(Line(DATA), StepLog(tmp_path, "run"), ProgressLine(), Measured(0.5, 0.25, gap=0.125), steps=1)
    last = [line for line in lines_of(tmp_path) if line.get("event") == "validation"][-1]
    assert last["by_sigma"] == [{"sigma": 0.5, "held_out_loss": 0.125, "audio_gap": 0.125},
                                {"sigma": 1.0, "held_out_loss": 0.25, "audio_gap": 0.125}]
    shown = next(text for text in caplog.messages if text.startswith("step 1: held-out loss 0.2500"))
    assert [line.split() for line in shown.splitlines()[1:]] == [
        ["noise", "level", "0.5", "1"], ["held-out", "loss", "0.1250", "0.2500"], ["audio", "gap", "+0.125", "+0.125"]]


def averages(messages: list[str]) -> dict[int, tuple[float, float]]:
    """{step: (loss, ema)} of the plain lines."""
    found = (re.match(r"step (\d+)/.* loss ([\d.]+) avg [\d.]+ ema ([\d.]+) ", text) for text in messages)
    return {int(one[1]): (float(one[2]), float(one[3])) for one in found if one}


def test_the_average_of_the_line_is_the_recursion_with_98_percent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(Line(DATA), ProgressLine(), steps=8)
    shown = averages(caplog.messages)
    assert list(shown) == list(range(1, 9)) and shown[1][0] == shown[1][1]
    for step in range(2, 9):
        assert shown[step][1] == pytest.approx(0.98 * shown[step - 1][1] + 0.02 * shown[step][0], abs=1.1e-4)


def test_the_average_goes_on_after_a_resume(caplog: pytest.LogCaptureFixture) -> None:
    line = ProgressLine()
    saves = Saves(line)
    fit(Line(DATA), line, saves, steps=8, lr=0.0)
    again, (state, memory) = ProgressLine(), saves.at[5]
    go_on(Line(DATA), again, state=state, memory=memory, steps=8, lr=0.0)
    assert again.remembered() == line.remembered()


class Slow(Line):
    """The first step of a process takes long."""

    def loss(self, batch: list[torch.Tensor]) -> Any:
        import time

        time.sleep(0.3 if not self.seen else 0.001)
        return super().loss(batch)


def test_the_first_step_does_not_count_in_the_speed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(Slow(DATA), ProgressLine(), steps=4)
        go_on(Slow(DATA), ProgressLine(), state=RunState(step=4, epoch=1), memory={"progress": {"ema": 1.0}}, steps=8)
    speeds = [float(one[1]) for text in caplog.messages if (one := re.search(r" ([\d.e-]+) s/step", text))]
    assert len(speeds) == 8 and speeds[0] >= 0.3 and speeds[4] >= 0.3
    assert max(speeds[1:4] + speeds[5:]) < 0.15


def test_there_is_no_word_of_gpu_memory_on_a_cpu(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(Line(DATA), ProgressLine(smi_every=1), steps=3)
    assert len(caplog.messages) == 3 and "[mem]" not in caplog.text and "[nvsmi]" not in caplog.text
    assert device_memory(torch.device("cpu")) is None and Smi.of(torch.device("cpu")) is None


def test_memory_is_told_in_gib_with_two_decimals() -> None:
    memory = DeviceMemory(allocated=GIB * 5 // 4, reserved=2 * GIB, peak=int(3.5 * GIB))
    assert memory.words == "[mem] alloc=1.25G reserved=2.00G max_alloc=3.50G" and memory.short == "1.2/3.5G"


def script(folder: Path, body: str) -> str:
    path = folder / "smi"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for nvidia-smi is a shell script")
def test_nvidia_smi_is_read_and_left_alone_where_it_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = Smi("GPU-1", script(tmp_path, '[ "$1" = --id=GPU-1 ] && echo "143771, 1234"'))
    assert good.line() == "[nvsmi] total=143771MiB used=1234MiB" and good.works
    for program in (str(tmp_path / "absent"), script(tmp_path, "exit 6"), script(tmp_path, "echo [N/A], 3")):
        caplog.clear()
        bad = Smi("0", program)
        assert (bad.line(), bad.line(), bad.works) == ("", "", False)
        assert len(caplog.messages) == 1 and "nvidia-smi does not tell" in caplog.text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_keeps_to_a_hundred_columns_and_shows_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        fit(Line(DATA), ProgressLine(), steps=1000, lr=1e-3)
    shown = [part for part in re.split(r"[\r\n]", terminal.getvalue()) if part.strip()]
    assert shown and max(map(len, shown)) <= 100
    assert re.search(r"1000/1000 .* loss [\d.]+ avg [\d.]+ lr 1.0e-03 [\d.e-]+ s/step", shown[-1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_tells_its_memory_as_torch_counts_it(caplog: pytest.LogCaptureFixture) -> None:
    device = torch.device("cuda:0")
    held = torch.zeros(GIB // 4, device=device)
    memory = device_memory(device)
    assert memory is not None and memory.allocated == torch.cuda.memory_allocated(device) >= held.nbytes
    assert memory.peak == torch.cuda.max_memory_allocated(device) >= memory.allocated
    smi = Smi.of(device)
    assert smi is not None and (found := re.fullmatch(r"\[nvsmi\] total=(\d+)MiB used=(\d+)MiB", smi.line()))
    assert int(found[1]) >= int(found[2]) >= 1024
