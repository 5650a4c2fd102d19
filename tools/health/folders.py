"""Whether results and caches can be written where they shall go."""

from collections.abc import Iterator
import os
from pathlib import Path
import secrets
import shutil
import time

from common.atomic import write_text
from tools.health.finding import Finding, Patient, gib

LITTLE_GIB, TOO_LITTLE_GIB = 20, 1
"""A 14B LoRA of rank 32 takes 0.6 GiB a checkpoint in float32; a minute of 480p footage some hundred MiB of caches."""
FEW_FILES = 10_000
CLOCK_SKEW_S = 10.0


def check_folders(patient: Patient) -> Iterator[Finding]:
    """Both folders, or the one that stands for both."""
    folders = {"output_dir": patient.output_dir, "cache_dir": patient.cache_dir}
    if patient.output_dir.resolve() == patient.cache_dir.resolve():
        folders = {"output_dir and cache_dir": patient.output_dir}
    for name, folder in folders.items():
        yield from _check(name, folder)


def _check(name: str, folder: Path) -> Iterator[Finding]:
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    place = str(folder.absolute()) + ("" if existing == folder.absolute() else f" (to be made in {existing})")
    if not existing.is_dir():
        yield Finding("FAIL", name, f"{place}: {existing} is a file", "name a folder")
        return
    try:
        skew_s = _write(existing)
    except OSError as error:
        yield Finding("FAIL", name, f"{place}: cannot be written ({error.strerror or error})",
                      f"choose another folder, or give yourself the right to write there (--{name.split()[0]})")
        return
    yield _space(name, place, existing)
    if abs(skew_s) > CLOCK_SKEW_S:
        yield Finding("warn", f"{name}: clock", f"files there are dated {skew_s:+.0f} s against this machine's clock",
                      "set the clock of this machine or of the file server: the order of files goes by their times")


def _write(folder: Path) -> float:
    """Write, sync, rename, read and remove a file with an odd name; the file's time less this machine's, in seconds."""
    probe = folder / f".doctor ünï 空 {os.getpid()}.{secrets.token_hex(4)}.txt"
    try:
        before = time.time()
        write_text(probe, "first\n")
        write_text(probe, "written\n")  # replaces the first: what every checkpoint and every cache entry does
        if probe.read_text(encoding="utf-8") != "written\n":
            raise OSError(f"{probe.name}: what was written is not what is read")
        return probe.stat().st_mtime - before
    finally:
        probe.unlink(missing_ok=True)


def _space(name: str, place: str, folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{place}: writing, syncing and renaming work; {gib(free)} free"
    files = os.statvfs(folder) if hasattr(os, "statvfs") else None
    if files is not None and files.f_files and files.f_favail < FEW_FILES:
        return Finding("warn", name, f"{found}, and only {files.f_favail} more files", "remove small files, or choose "
                       "another file system: a cache is several files a clip")
    if free < TOO_LITTLE_GIB * 2**30:
        return Finding("FAIL", name, found, f"free some space: less than {TOO_LITTLE_GIB} GiB holds no checkpoint of a "
                                            "14B LoRA")
    if free < LITTLE_GIB * 2**30:
        return Finding("warn", name, found, f"free some space: below {LITTLE_GIB} GiB a run with several checkpoints "
                                            "may fill the disk")
    return Finding("ok", name, found)
