"""Reads the table of phases (`--phases`): from which step on, which entries of the dataset, and what else differs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
import itertools
from typing import Any

from common.config import Section, TomlDocument, check_values, read_toml
from common.errors import ConfigError, nearest, raise_all
from common.logs import get_logger
from training.config import NoiseSection, ShowingSection, TrainConfig

log = get_logger(__name__)

SHOWING_KEYS = tuple(ShowingSection.model_fields)
NOISE_KEYS = ("discrete_flow_shift", "min_timestep", "max_timestep")
OWN_KEYS = ("start_step", "datasets", "enabled")
KEYS = (*OWN_KEYS, *SHOWING_KEYS, *NOISE_KEYS)
_ROUNDING = 1e-6


@dataclass(frozen=True)
class PhaseEntry:
    """One [[phases]] table that holds, with the run's settings as they are in it."""

    number: int
    """Its place in the file, from 1."""
    where: str
    """File and line."""
    start_step: int
    """Optimiser steps that are done when it begins."""
    end_step: int
    """The last step of it: where the next one starts, or the run ends."""
    datasets: Mapping[str, float | None]
    """Entries of the dataset by name, with probabilities above 0 or without any; empty: all entries, without."""
    overrides: Mapping[str, Any]
    """What the table sets beside that."""
    showing: ShowingSection
    noise: NoiseSection


@dataclass
class _Reading:
    document: TomlDocument
    config: TrainConfig
    names: Sequence[str] | None
    problems: list[str] = field(default_factory=list)

    def where(self, *keys: str | int) -> str:
        """File and line of the longest known part of `keys`."""
        while keys and self.document.line(*keys) is None:
            keys = keys[:-1]
        return self.document.where(*keys)

    def problem(self, index: int, key: str, text: str) -> None:
        """Note what is wrong with `key` of a table."""
        self.problems.append(f"{self.where('phases', index, *[key] * bool(key))}: phase {index + 1}: {text}")


def read_phases(config: TrainConfig, names: Sequence[str] | None) -> tuple[PhaseEntry, ...]:
    """The phases that are enabled and begin within the run, in order; nothing without `--phases`.

    `names` are those of the dataset's entries (None where they are not known). Raises ConfigError with every problem:
    file, line, phase, key, nearest known name. Phases that never come are told in a line.
    """
    path = config.phases.phases
    if path is None:
        return ()
    reading = _Reading(read_toml(path), config, names)
    if config.length.max_train_epochs is not None:
        reading.problems.append("--max_train_epochs with --phases: phases start at steps, so the run's length is told "
                                "in steps too. Use --max_train_steps.")
    for key in reading.document.data:
        if key != "phases":
            reading.problems.append(f"{reading.where(key, 0)}: unknown key or table '{key}'{nearest(key, ['phases'])}. "
                                    "A file of phases has [[phases]] tables alone.")
    found = [one for index, table in _enabled(reading) if (one := _entry(index, table, reading)) is not None]
    if not reading.problems:
        _check_starts(found, reading)
    raise_all(reading.problems, ConfigError, "--phases")
    return _within(found, config.length.max_train_steps)


def _enabled(reading: _Reading) -> Iterator[tuple[int, dict[str, Any]]]:
    """(index, table) of the phases that are not switched off."""
    tables = reading.document.data.get("phases")
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables) or not tables:
        reading.problems.append(f"{reading.where('phases')}: no [[phases]] table. Each phase is one, the first with "
                                "start_step = 0.")
        return
    if not any(one.get("enabled", True) for one in tables):
        reading.problems.append(f"{reading.where('phases', 0)}: no phase is enabled. Enable one, or leave out --phases "
                                "itself.")
    for index, table in enumerate(tables):
        enabled = table.get("enabled", True)
        if not isinstance(enabled, bool):
            reading.problem(index, "enabled", f"enabled = {enabled!r} is not true or false.")
        elif not enabled:
            log.warning("phase %d disabled: it says enabled = false (%s)", index + 1, reading.where("phases", index))
            continue
        yield index, table


def _entry(index: int, table: Mapping[str, Any], reading: _Reading) -> PhaseEntry | None:
    before = len(reading.problems)
    for key in table:
        if key not in KEYS:
            reading.problem(index, key, f"unknown key '{key}'{nearest(key, KEYS)}. Known keys: {', '.join(KEYS)}.")
    start = table.get("start_step")
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        found = "no start_step" if start is None else f"start_step = {start!r}"
        reading.problem(index, "start_step", f"{found}; it must be the number of optimiser steps that are done when "
                                             "the phase begins, 0 for the first.")
    datasets = _datasets(index, table.get("datasets", []), reading)
    overrides = {key: value for key, value in table.items() if key in (*SHOWING_KEYS, *NOISE_KEYS)}
    showing = _overridden(index, reading.config.showing, overrides, reading)
    noise = _overridden(index, reading.config.noise, overrides, reading)
    if len(reading.problems) > before or showing is None or noise is None:
        return None
    assert isinstance(start, int) and isinstance(showing, ShowingSection) and isinstance(noise, NoiseSection)
    return PhaseEntry(index + 1, reading.where("phases", index), start, 0, datasets, overrides, showing, noise)


def _datasets(index: int, given: Any, reading: _Reading) -> dict[str, float | None]:
    """Entries by name. Those of probability 0 are left out."""
    if isinstance(given, list) and all(isinstance(name, str) for name in given):
        names, values = given, []
    elif isinstance(given, dict):
        names, values = [*given], [*given.values()]
    else:
        reading.problem(index, "datasets", f"datasets = {given!r} is neither a list of names nor a table of names with "
                                           "probabilities, such as { small = 0.5, large = 0.5 }.")
        return {}
    for name in dict.fromkeys(names):
        _check_name(index, name, names.count(name), reading)
    if isinstance(given, list):
        return dict.fromkeys(names)
    bad = [f"{name} = {value!r}" for name, value in given.items()
           if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1]
    if bad:
        reading.problem(index, "datasets", f"datasets: {', '.join(bad)}: a probability lies between 0 and 1.")
    elif abs(sum(values) - 1) > _ROUNDING:
        reading.problem(index, "datasets", f"datasets: the probabilities {', '.join(f'{one:g}' for one in values)} are "
                                           f"{sum(values):g} together; they must sum to 1.")
    return {name: value for name, value in given.items() if value}


def _check_name(index: int, name: str, count: int, reading: _Reading) -> None:
    if count > 1:
        reading.problem(index, "datasets", f"datasets names '{name}' twice.")
    if reading.names is None:
        return
    same = Counter(reading.names)[name]
    if not same:
        reading.problem(index, "datasets", f"datasets: '{name}' is no entry of "
                                           f"{reading.config.data.dataset_config}{nearest(name, reading.names)}. Its "
                                           f"entries: {', '.join(reading.names)}.")
    elif same > 1:
        reading.problem(index, "datasets", f"datasets: {same} entries of {reading.config.data.dataset_config} are "
                                           f"called '{name}' (after their folder). Give each a name = of its own.")


def _overridden(index: int, run: Section, overrides: Mapping[str, Any], reading: _Reading) -> Section | None:
    """The run's section with what the phase sets of it, checked as flags are."""
    kind = type(run)
    own = {key: value for key, value in overrides.items() if key in kind.model_fields}
    values = {**run.model_dump(exclude_unset=True), **own}
    # What the run says of a thing that the phase sets anew says nothing any more.
    if own.get("random_length") is False and "min_frames" not in own:
        values.pop("min_frames", None)
    if "prefix_frames" in own and "prefix_weights" not in own:
        values.pop("prefix_weights", None)
    origins = {key: f"{reading.where('phases', index, key)}: phase {index + 1}" for key in own}
    problems: list[str] = []
    found = check_values(kind, values, origins, problems)
    for text in problems:
        if text.startswith(tuple(origins.values())):
            reading.problems.append(text)
        else:
            reading.problem(index, "", text)
    return found


def _check_starts(found: Sequence[PhaseEntry], reading: _Reading) -> None:
    if found[0].start_step != 0:
        reading.problem(found[0].number - 1, "start_step",
                        f"start_step = {found[0].start_step}; the first phase starts at 0.")
    for before, after in itertools.pairwise(found):
        if after.start_step <= before.start_step:
            reading.problem(after.number - 1, "start_step",
                            f"start_step = {after.start_step}, and phase {before.number} starts at "
                            f"{before.start_step}. Phases stand in their order, each later than the one before.")


def _within(found: Sequence[PhaseEntry], steps: int) -> tuple[PhaseEntry, ...]:
    """Those that begin before the run's last step, with their ends; the others are told."""
    kept = []
    for one, following in itertools.zip_longest(found, found[1:]):
        if one.start_step >= steps:
            log.warning("phase %d is never reached: it starts at %d, the run has %d steps (%s)", one.number,
                        one.start_step, steps, one.where)
            continue
        end = min(steps, following.start_step if following is not None else steps)
        kept.append(replace(one, end_step=end))
    return tuple(kept)
