"""What a start does in a folder where its run has been before: begin, go on, or say that there is nothing to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
import glob
import os
from pathlib import Path
import re
import secrets
from typing import Any

from common.config import flags_of
from common.config.show import value_of
from common.errors import ConfigError, raise_all
from common.fingerprint import weights_fingerprint
from common.logs import get_logger
from training.clips import EpochBatches
from training.config import TrainConfig
from training.keeping.resume_rules import RULES, Rule, changed, plain, refusals, told
from training.keeping.run_record import FILE, RunRecord, move_corrupt, read_record
from training.keeping.state_settings import StateSection
from training.keeping.states import SavedState, clear_newer, newest_whole, read_state, sweep
from training.looking.preview_files import FOLDER as PREVIEWS
from training.looking.preview_files import HELD_OUT
from training.looking.preview_page import write_page
from training.phases import current_phase

log = get_logger(__name__)


@dataclass(frozen=True)
class Start:
    """How a run begins."""

    record: RunRecord
    state: SavedState | None = None
    """What it goes on from; None for a beginning."""
    weights_only: bool = False
    """Only the weights of `state` are taken."""
    done: str = ""
    """Why there is nothing to do; empty where there is."""

    @property
    def is_resumed(self) -> bool:
        """Whether counters, optimiser and all go on."""
        return self.state is not None and not self.weights_only

    @property
    def seed(self) -> int | None:
        """The seed that the run began with."""
        seed: int | None = None if self.state is None or self.weights_only else self.state.facts["settings"]["seed"]
        return seed


def find_start(config: TrainConfig) -> Start:
    """Look at what `--output_dir` holds, before anything is loaded and without changing anything.

    Raises ConfigError where `--resume` names a state that is not whole, or there is none to take what was asked from.
    """
    folder, name, settings = config.saving.output_dir, config.saving.output_name, config.state
    fresh = RunRecord(name=name, run_id=secrets.token_hex(8))
    if settings.force:
        return Start(fresh)
    state = newest_whole(folder, name) if settings.resume_path is None else _named(settings.resume_path)
    if state is None:
        if settings.resume_weights_only or settings.resume_new_data:
            raise ConfigError(f"{folder} holds no state of '{name}' to go on from. Look at --output_dir and "
                              "--output_name, or name the state: --resume FOLDER.")
        return Start(fresh)
    if settings.resume_weights_only:
        return Start(fresh, state, weights_only=True)
    record = read_record(folder, name)
    record.run_id = str(state.facts.get("run_id", "")) or record.run_id or fresh.run_id
    return Start(record, state, done=_nothing_to_do(state, config))


def make_room(start: Start, config: TrainConfig) -> Start:
    """Take out of the way what the run would mistake for its own; nothing is deleted but unfinished files.

    An earlier run's files go to a folder of their own where this one begins anew. Where it goes on, states that are
    newer than its own are renamed, and all that are here where it comes from another folder.
    """
    folder, name = config.saving.output_dir, config.saving.output_name
    if swept := [path for one in (folder, folder / PREVIEWS, folder / PREVIEWS / HELD_OUT) for path in sweep(one)]:
        log.info("removed what a killed run left unfinished: %s", ", ".join(path.name for path in swept))
    move_corrupt(folder)
    is_own = start.state is not None and start.state.path.parent.resolve() == folder.resolve()
    if start.is_resumed and start.state is not None:
        clear_newer(folder, name, start.state.step if is_own else -1)
    elif start.state is None and not config.state.force:
        clear_newer(folder, name, -1)
    else:
        aside = _move_away(folder, name)
        if start.state is not None and aside is not None and is_own:
            return replace(start, state=replace(start.state, path=aside / start.state.path.name))
    return start


def _named(path: Path) -> SavedState:
    try:
        return read_state(path)
    except ConfigError as error:
        raise ConfigError(f"--resume {error}. Name another state, or use --resume auto, which takes the newest whole "
                          "one.") from error


def _move_away(folder: Path, name: str) -> Path | None:
    """Rename what an earlier run of `name` left (states, checkpoints, record, previews) into one folder beside; that
    folder."""
    own = re.compile(re.escape(name) + r"(-step\d{8,}(-state)?|-\d{6,}|-best|-raw|-ema)?(\.safetensors)?")
    mine = [path for path in folder.iterdir() if path.name == FILE or (
        own.fullmatch(path.name) and (path.suffix or path.name.endswith("-state")))] if folder.is_dir() else []
    previews = [*(folder / PREVIEWS).glob(f"{glob.escape(name)}_step*")]
    if not mine and not previews:
        return None
    target = folder / f"{name}-before-{datetime.now():%Y%m%d-%H%M%S}"
    target.mkdir()
    for path in mine:
        os.replace(path, target / path.name)
    if previews:
        (target / PREVIEWS).mkdir()
        for path in previews:
            os.replace(path, target / PREVIEWS / path.name)
        write_page(target / PREVIEWS)
    log.info("what an earlier run of '%s' left is now in %s", name, target)
    return target


def _nothing_to_do(state: SavedState, config: TrainConfig) -> str:
    """Why a run is done already (row 004-11, its contradictions settled); empty where it is not.

    A longer run than before is a wish to go on, and so is `--continue_training`.
    """
    settings, facts = config.state, state.facts
    status = facts.get("status", "running")
    is_longer = _is_longer(facts["settings"], config, int(facts.get("total_steps", 0)))
    if settings.continue_training or is_longer:
        return ""
    ways = "To go on: a larger --max_train_steps or --max_train_epochs, or --continue_training; to train anew: --force."
    has_result = (config.saving.output_dir / f"{config.saving.output_name}.safetensors").exists()
    if not has_result and (status in ("finished", "stopped early") or settings.min_sufficient_epochs is not None):
        return ""  # the disk was full at the end, say: going on writes what is missing
    if status == "finished":
        return f"this run is finished: {state.step} of {facts.get('total_steps')} steps ({state.path.name}). {ways}"
    if status == "stopped early":
        return f"this run has stopped early, at step {state.step} ({state.path.name}). {ways}"
    return sufficient_reason(int(facts.get("epochs_done", 0)), settings, state.path.name)


def sufficient_reason(epochs: int, settings: StateSection, where: str) -> str:
    """Why a run of `epochs` finished epochs counts as done by `--min_sufficient_epochs`; empty where it does not."""
    least = settings.min_sufficient_epochs
    if least is None or epochs <= least:
        return ""
    return (f"{epochs} epochs are done, more than --min_sufficient_epochs {least} ({where}). To go on: "
            "--continue_training; to train anew: --force.")


def _is_longer(before: Mapping[str, Any], config: TrainConfig, total_steps: int) -> bool:
    now = plain_values(config)
    if now["max_train_epochs"] is not None:
        return before.get("max_train_epochs") is None or now["max_train_epochs"] > before["max_train_epochs"]
    return bool(now["max_train_steps"] > total_steps)


def plain_values(config: TrainConfig) -> dict[str, Any]:
    """Every setting but secrets, as JSON has it."""
    return {field.name: plain(value_of(config, field)) for field in flags_of(type(config)) if not field.is_secret}


def facts_of(config: TrainConfig, batches: EpochBatches, run_id: str, phases: Sequence[Mapping[str, Any]] = ()
             ) -> dict[str, Any]:
    """What a state tells of the run that wrote it, to be compared when it is gone on from.

    `phases` are its `phases_content`.
    """
    import torch

    from common.version import VERSION

    return {"run_id": run_id, "name": config.saving.output_name, "settings": plain_values(config),
            "content": {"dit": weights_fingerprint([config.data.dit]), "dataset_config": batches.order(),
                        "phases": list(phases),
                        "base_weights": [weights_fingerprint([path]) for path in config.data.base_weights]},
            "processes": batches.processes.count, "versions": {"omnituner": VERSION, "torch": torch.__version__}}


def check_change(start: Start, facts: Mapping[str, Any], settings: StateSection) -> None:
    """Compare a state with what this start asks for. ConfigError lists what is refused, and says what can be done."""
    assert start.state is not None
    before, now = start.state.facts, facts
    problems = refusals(before["settings"], now["settings"], weights_only=start.weights_only)
    if not start.weights_only:
        problems += _other_content(before["content"], now["content"])
        problems += _other_phase(before, now, start.state.step, settings)
    raise_all(problems, ConfigError, f"{start.state.path.name} was made with other settings. Start with those "
              "(settings.toml in --output_dir holds them), or begin a run of another --output_name, or anew with "
              "--force; where it says so, --resume_weights_only takes the weights alone")
    for line in told(before["settings"], now["settings"]):
        log.warning("%s", line)
    if before["processes"] != now["processes"]:
        log.warning("the run goes on in %d processes instead of %d: the same global batches, summed in another order",
                    now["processes"], before["processes"])


def _other_content(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    problems = []
    if before["dit"] != now["dit"]:
        problems.append("--dit is another file: its content differs from the one that the run began with")
    if before["base_weights"] != now["base_weights"]:
        problems.append("--base_weights are other files")
    return problems


def _other_phase(before: Mapping[str, Any], now: Mapping[str, Any], step: int, settings: StateSection) -> list[str]:
    """Other clips, or another way to show them, in the phase that the run is in; those that come later may differ."""
    problems = []
    old, new = (current_phase(one["content"].get("phases") or [
        {"start_step": 0, "order": one["content"]["dataset_config"], "shown": {}}], step) for one in (before, now))
    has_phases = bool(before["settings"].get("phases") or now["settings"].get("phases"))
    what = "the training clips, their batch size or the number of processes" + (
        f", or the phase of step {step}" if has_phases else "")
    if (old["start_step"], old["order"]) != (new["start_step"], new["order"]):
        if settings.resume_new_data:
            log.warning("%s changed: a new epoch begins with what is there now", what)
        else:
            problems.append(f"{what} are not those of the run (--resume_new_data accepts them and begins a new epoch)")
    if has_phases:
        problems += [f"--phases: {name} of step {step} was {before_}, is {after} ({Rule.FRESH.value})"
                     for name, (before_, after) in changed(old["shown"], new["shown"]).items()]
    return problems


def rules_table() -> str:
    """The table of `docs/resume.md`: a row for every setting."""
    rows = [f"| {rule.value} | {', '.join(f'`--{name}`' for name in RULES if RULES[name] is rule)} |" for rule in Rule]
    return "\n".join(["| when changed | settings |", "|---|---|", *rows])
