"""Saved states on the disk: a folder for each, whole or not there, newest first.

``NAME-step00000500-state`` holds `network.safetensors`, `optimizer.safetensors`, `run.safetensors` and `state.json`,
which is written last and knows size and hash of the others. A folder is filled under another name and renamed when all
of it is on the disk, so that neither kill -9 nor a power failure leaves half of one under its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
import json
import os
from pathlib import Path
import re
import secrets
import shutil
from typing import Any

from common.atomic import TEMPORARY_SUFFIX, sync_folder, write_text
from common.errors import ConfigError
from common.fingerprint import content_hash
from common.logs import get_logger

log = get_logger(__name__)

SCHEMA = 1
"""Version of what a state holds."""
INDEX = "state.json"
_OWN = re.compile(r"(?P<name>.+)-step(?P<step>\d{8,})-state")
_TEMPORARY = re.compile(r"\..+\.(?P<pid>\d+)\.[0-9a-f]{8}" + re.escape(TEMPORARY_SUFFIX) + r"(\..+)?")


@dataclass(frozen=True)
class SavedState:
    """A whole state."""

    path: Path
    step: int
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What `write_state` was given, with `created` and `versions`."""


def state_path(folder: Path, name: str, step: int) -> Path:
    """``NAME-step00000500-state`` in `folder`."""
    return folder / f"{name}-step{step:08d}-state"


def step_of(path: Path, name: str) -> int | None:
    """The step of a state folder of the run `name`, by its name; None for other folders."""
    found = _OWN.fullmatch(path.name)
    return int(found["step"]) if found and found["name"] == name else None


def write_state(path: Path, parts: Mapping[str, Callable[[Path], None]], facts: Mapping[str, Any]) -> None:
    """Fill a folder with `parts` (file name → function that writes it) and make it appear at `path`.

    A state that is there already stays until the new one is whole. On an error nothing of the new one is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    staged, old = path.parent / f".{path.name}.{mark}", path.parent / f".{path.name}-old.{mark}"
    try:
        staged.mkdir()
        files = {}
        for name, write in parts.items():
            write(staged / name)
            files[name] = {"bytes": (staged / name).stat().st_size, "xxh3": content_hash(staged / name)}
        write_text(staged / INDEX, json.dumps({
            "schema": SCHEMA, "created": datetime.now(UTC).isoformat(timespec="seconds"), **facts, "files": files},
            indent=1))
        sync_folder(staged)
        if path.exists():
            os.replace(path, old)
        os.replace(staged, path)
        sync_folder(path.parent)
    finally:
        for rest in (staged, old):
            if rest.exists():
                shutil.rmtree(rest, ignore_errors=True)


def read_state(path: Path) -> SavedState:
    """A state, all of its files looked at. ConfigError says what is wrong with it."""
    index = path / INDEX
    try:
        facts = json.loads(index.read_text(encoding="utf-8"))
        schema, files, step = facts["schema"], dict(facts["files"]), int(facts["step"])
    except FileNotFoundError as error:
        what = "no such folder" if not path.is_dir() else f"it has no {INDEX}, which is written last"
        raise ConfigError(f"{path}: {what}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{index}: cannot be read ({error})") from error
    if schema != SCHEMA:
        age = "a newer" if schema > SCHEMA else "an older"
        raise ConfigError(f"{path}: written by {age} version (schema {schema}, this one reads {SCHEMA})")
    for name, told in files.items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != told["bytes"]:
            found = "is gone" if size is None else f"has {size} bytes"
            raise ConfigError(f"{file}: {found}, was written with {told['bytes']}")
        if content_hash(file) != told["xxh3"]:
            raise ConfigError(f"{file}: its content is not what was written")
    return SavedState(path, step, facts)


def find_states(folder: Path, name: str) -> list[Path]:
    """State folders of the run `name`, the newest first, looked at by their names alone."""
    if not folder.is_dir():
        return []
    steps = {path: step for path in folder.iterdir() if path.is_dir() and (step := step_of(path, name)) is not None}
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def newest_whole(folder: Path, name: str) -> SavedState | None:
    """The newest state that can be gone on from; newer ones that cannot are named loudly and passed over."""
    for path in find_states(folder, name):
        try:
            return read_state(path)
        except ConfigError as error:
            log.warning("a saved state is passed over, and the one before it is used: %s", error)
    return None


def clear_newer(folder: Path, name: str, than: int) -> None:
    """Rename the states of later steps than `than`, so that they are not mistaken for this run's: ``….damaged-…``, or
    ``….left-…`` where they are whole."""
    for path in find_states(folder, name):
        if (step_of(path, name) or 0) <= than:
            return
        try:
            read_state(path)
            why = "left"
        except ConfigError:
            why = "damaged"
        log.warning("%s is put aside as %s", path.name, put_aside(path, why).name)


def put_aside(path: Path, why: str) -> Path:
    """Rename what shall not be found again, and return its new place: ``NAME.damaged-20261129-201500``."""
    aside = path.with_name(f"{path.name}.{why}-{datetime.now():%Y%m%d-%H%M%S}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{why}-{datetime.now():%Y%m%d-%H%M%S}-{number}")
    os.replace(path, aside)
    return aside


def remove_state(path: Path) -> None:
    """Delete a state so that a kill in the middle leaves nothing that looks like one."""
    doomed = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sweep(folder: Path) -> list[Path]:
    """Delete what killed runs left unfinished in `folder`: our own temporary names of processes that are gone."""
    import psutil

    swept = []
    for path in folder.iterdir() if folder.is_dir() else ():
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or (int(found["pid"]) != os.getpid() and psutil.pid_exists(int(found["pid"]))):
            continue
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        swept.append(path)
    return swept
