"""The rows of an entry from its folder or its list, and what must hold among them."""

from common.speakers import audio_feature
from dataset.directory import read_directory
from dataset.lists import read_jsonl, read_manifest
from dataset.places import Places
from dataset.roles import MASK_ROLES, role_name, speaker_mask_role
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
    """Control, sound and masks must be there for all sources or for none.

    Masks of speakers: for all sources of several speakers. What an entry holds is then told by any of its sources.
    """
    own_sound = getattr(entry, "audio", None) in ("clip", "none")
    several = [row for row in found.rows if audio_feature(2) in row.sides]
    for role, rows in (("control", found.rows), ("audio", [] if own_sound else found.rows),
                       *((role, found.rows) for role in MASK_ROLES), (speaker_mask_role(1), several)):
        without = [row for row in rows if role not in row.sides]
        if not without or len(without) == len(rows):
            continue
        remedy = ", or set audio = \"clip\" to use these clips' own sound" if role == "audio" else ""
        found.problems += [f"{row.label}: no {role_name(role)} file, while other sources have one. Give it{remedy}, or "
                           "make an entry of its own." for row in without]


def _check_repeats(found: RowList) -> None:
    seen: dict[str, Row] = {}
    for row in found.rows:
        if row.media.key in seen:
            found.problems.append(f"{row.where}: '{row.media.key}' already stands at {seen[row.media.key].where}. Use "
                                  "num_repeats to show a clip more often, or an entry of its own for another caption.")
        seen.setdefault(row.media.key, row)
