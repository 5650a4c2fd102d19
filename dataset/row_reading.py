"""The rows of an entry from its folder or its list, and what must hold among them."""

from dataset.directory import read_directory
from dataset.lists import read_jsonl, read_manifest
from dataset.places import Places
from dataset.rows import Row, RowList
from dataset.schema import Entry


def read_rows(entry: Entry, places: Places) -> RowList:
    """Every row of `entry`; where its folder holds no media at all, the rows that the cache remembers."""
    if entry.directory is not None:
        found = read_directory(entry, places)
    elif getattr(entry, "manifest_file", None) is not None:
        found = read_manifest(places)
    else:
        found = read_jsonl(entry, places)
    if not found.problems:
        _check_sides(entry, found)
    _check_repeats(found)
    return found


def _check_sides(entry: Entry, found: RowList) -> None:
    """Control and sound must be there for all sources or for none (a batch holds one kind)."""
    own_sound = getattr(entry, "audio", None) in ("clip", "none")
    for role, is_mended in (("control", False), ("audio", own_sound)):
        without = [row for row in found.rows if role not in row.sides]
        if not without or len(without) == len(found.rows) or is_mended:
            continue
        remedy = ", or set audio = \"clip\" to use these clips' own sound" if role == "audio" else ""
        found.problems += [f"{row.label}: no {role} file, while other sources have one. Give it{remedy}, or make an "
                           "entry of its own." for row in without]


def _check_repeats(found: RowList) -> None:
    seen: dict[str, Row] = {}
    for row in found.rows:
        if row.media.key in seen:
            found.problems.append(f"{row.where}: '{row.media.key}' already stands at {seen[row.media.key].where}. Use "
                                  "num_repeats to show a clip more often, or an entry of its own for another caption.")
        seen.setdefault(row.media.key, row)
