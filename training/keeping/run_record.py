"""``training_state.json``: one readable page that says where a run stands. Nothing is computed from it alone.

States and checkpoints on the disk are the truth; this file names them, counts what failed and keeps the last figures.
Damaged, it is moved aside and made again from them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
import json
import math
from pathlib import Path
import re
from typing import Any, ClassVar

from common.atomic import write_text
from common.errors import ConfigError
from common.logs import get_logger
from training.callbacks import Onlooker, Outcome, Run, ValidationReport
from training.keeping.states import find_states, put_aside, read_state

log = get_logger(__name__)

FILE = "training_state.json"
SCHEMA = 1
HISTORY = 10
"""Checkpoints, validations and errors that are remembered, the newest last."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass
class RunRecord:
    """The content of the file."""

    schema: int = SCHEMA
    name: str = ""
    run_id: str = ""
    status: str = "new"
    """new, running, finished, stopped early, interrupted, failed"""
    reason: str = ""
    """Why it ended, where it did not end at its last step."""
    step: int = 0
    epoch: int = 0
    total_steps: int = 0
    started: str = field(default_factory=_now)
    updated: str = ""
    starts: int = 0
    """How often the run was started, the first time included."""
    states: list[str] = field(default_factory=list)
    """Folders that the run can go on from, the newest last."""
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    """Lowest held-out loss: step, figure."""
    validations: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    graphs: dict[str, Any] | None = None
    """Of compiled blocks in the last sitting: sizes, graphs made late, breaks; None where nothing was compiled."""

    def text(self) -> str:
        """The file's content."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_record(folder: Path, name: str) -> RunRecord:
    """The record of the run `name` in `folder`; a fresh one where there is none, or another run's.

    A file that cannot be read, or whose fields are not what they should be, is made again from the states and
    checkpoints in the folder; `move_corrupt` takes it out of the way.
    """
    try:
        record = _read(folder)
    except FileNotFoundError:
        return rebuilt(folder, name)
    except (OSError, ValueError, TypeError) as error:
        log.warning("%s cannot be read (%s); it is made again from the states and checkpoints here.", folder / FILE,
                    error)
        return rebuilt(folder, name)
    return record if record.name == name else rebuilt(folder, name)


def move_corrupt(folder: Path) -> None:
    """Rename the record of `folder` to ``training_state.json.corrupt-<time>`` where it cannot be read."""
    try:
        _read(folder)
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError):
        log.warning("%s was moved to %s", folder / FILE, put_aside(folder / FILE, "corrupt").name)


def _read(folder: Path) -> RunRecord:
    return _checked(json.loads((folder / FILE).read_text(encoding="utf-8")))


def _checked(values: Any) -> RunRecord:
    if not isinstance(values, dict):
        raise ValueError("it holds no table")
    if values.get("schema") != SCHEMA:
        raise ValueError(f"schema {values.get('schema')!r}, expected {SCHEMA}")
    kinds = {one.name: type(one.default) if isinstance(one.default, (int, str)) else list for one in fields(RunRecord)}
    kinds["started"] = str
    for key, kind in kinds.items():
        if key not in values or key in ("best", "graphs"):
            continue
        if not isinstance(values[key], kind):
            raise ValueError(f"'{key}' is {values[key]!r}, expected a {kind.__name__}")
    return RunRecord(**{key: values[key] for key in kinds if key in values})


def rebuilt(folder: Path, name: str) -> RunRecord:
    """What the folder alone tells of the run `name`; the status is then unknown and counts as interrupted."""
    record = RunRecord(name=name)
    for path in reversed(find_states(folder, name)):
        try:
            state = read_state(path)
        except ConfigError:
            continue  # told where a state is chosen
        record.states.append(path.name)
        record.step, record.run_id = state.step, str(state.facts.get("run_id", ""))
        record.total_steps = int(state.facts.get("total_steps", 0))
        record.epoch = int(state.facts.get("epoch", 0))
        record.status = str(state.facts.get("status", "interrupted"))
    record.checkpoints = [{"path": path.name, "step": _step_in(path)} for path in _checkpoints(folder, name)][-HISTORY:]
    return record


def _checkpoints(folder: Path, name: str) -> list[Path]:
    found = re.compile(re.escape(name) + r"(-step\d{8,}|-\d{6,})?\.safetensors")
    here = [path for path in folder.iterdir() if found.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(here, key=lambda path: path.stat().st_mtime)


def _step_in(path: Path) -> int | None:
    found = re.search(r"-step(\d+)\.safetensors$", path.name)
    return int(found[1]) if found else None


class RecordKeeper(Onlooker):
    """Keeps ``training_state.json`` up to date, on the first process.

    The measurements are those that the state knew which the run goes on from, not what came after it.
    """

    state_name: ClassVar[str] = "record"

    def __init__(self, folder: Path, record: RunRecord, *,
                 graphs: Callable[[], dict[str, Any] | None] = lambda: None) -> None:
        """`graphs` tells what compiling came to so far."""
        super().__init__()
        self.folder, self.record, self._graphs = folder, record, graphs
        self._basis = ""

    def remembered(self) -> dict[str, Any]:
        """The best measurement, the last ones, and what they measured."""
        return {"best": self.record.best, "validations": self.record.validations, "basis": self._basis}

    def recall(self, values: Mapping[str, Any]) -> None:
        """Take them up."""
        self.record.best, self.record.validations = values["best"], list(values["validations"])
        self._basis = values["basis"]

    def on_start(self, run: Run) -> None:
        """The run is under way."""
        self.record.status, self.record.reason = "running", ""
        self.record.starts += 1
        self.record.total_steps = run.total_steps
        self._write(run)

    def on_save(self, run: Run, path: Path) -> None:
        """Note a checkpoint; those that rotation deleted leave the list."""
        if not run.processes.is_main:
            return
        others = [one for one in self.record.checkpoints if one["path"] != path.name]
        there = [one for one in others if (self.folder / one["path"]).exists()]
        self.record.checkpoints = [*there, {"path": path.name, "step": run.state.step, "time": _now()}][-HISTORY:]
        self._write(run)

    def on_state(self, run: Run, path: Path) -> None:
        """Note a saved state."""
        self._write(run)

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """Note the figures, and the best of them."""
        gap = None if report.audio is None else report.audio.gap
        figures = {"step": report.step, "held_out_loss": _finite(report.loss), "audio_gap": _finite(gap)}
        before = [one for one in self.record.validations if one["step"] < report.step]
        self.record.validations = [*before, figures][-HISTORY:]
        best = self.record.best if self._basis == report.basis else None
        if math.isfinite(report.loss) and (best is None or report.loss < best["held_out_loss"]):
            self.record.best, self._basis = figures, report.basis
        self._write(run)

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """How it ended."""
        self.record.status = "stopped early" if run.stop_reason and outcome is Outcome.FINISHED else outcome.value
        error = "" if run.error is None else f"{run.error}" or type(run.error).__name__
        self.record.reason = run.stop_reason or error
        if outcome is Outcome.FAILED:
            failure = {"step": run.state.step, "time": _now(), "error": self.record.reason}
            self.record.failures = [*self.record.failures, failure][-HISTORY:]
        self._write(run)

    def _write(self, run: Run) -> None:
        if not run.processes.is_main:
            return
        record = self.record
        record.step, record.epoch, record.updated = run.state.step, run.state.epoch, _now()
        record.graphs = self._graphs()
        record.states = [path.name for path in reversed(find_states(self.folder, record.name))]
        with self.writing(self.folder / FILE):
            write_text(self.folder / FILE, record.text())


def _finite(value: float | None) -> float | None:
    """JSON has no word for other numbers."""
    return value if value is not None and math.isfinite(value) else None
