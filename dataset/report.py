"""A dataset in a few lines of text: what was found, in which sizes, what was left out and why."""

from collections import Counter
from collections.abc import Sequence

from dataset.items import Item
from dataset.open import Dataset

_SHOWN = 8
_HEADINGS = ("entry", "kind", "sources", "clips", "an epoch", "fps", "sound", "width x height x frames: clips")


def describe(dataset: Dataset) -> str:
    """Table of the entries, then the sources that give no clip, then the notes; a line each."""
    lines = table([_HEADINGS, *_rows(dataset)])
    for title, group in (("left out", dataset.dropped), ("cannot be read", dataset.failed)):
        lines += [f"{title}: {one.name}: {one.reason}" for one in group[:_SHOWN]]
        if len(group) > _SHOWN:
            lines.append(f"{title}: and {len(group) - _SHOWN} more")
    absent = sum(not item.is_checked for item in dataset.items)
    if absent:
        lines.append(f"{absent} sources are not there; what the cache remembers of them is used")
    return "\n".join([*lines, *dataset.notes])


def _rows(dataset: Dataset) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for section in dataset.config.sections:
        items = [item for item in dataset.items if item.section_index == section.index]
        clips = [span for item in items for span in item.spans]
        sizes = Counter(f"{span.width}x{span.height}x{span.frames}" for span in clips)
        shown = [f"{size}: {count}" for size, count in sizes.most_common(_SHOWN)]
        if len(sizes) > _SHOWN:
            shown.append(f"… {len(sizes)} sizes")
        sounds = {_sound(item) for item in items}
        rows.append((section.name, section.kind, str(len(items)), str(len(clips)),
                     str(len(clips) * section.entry.num_repeats), "/".join(sorted({f"{item.fps:g}" for item in items})),
                     "/".join(sorted(sounds)), ", ".join(shown)))
    return rows


def _sound(item: Item) -> str:
    if item.sound is None:
        return "-"
    return ("own" if item.sound.is_own else "file") + (f" x{len(item.sounds)}" if item.voices else "")


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns below each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return ["  ".join([cell.ljust(width) for cell, width in zip(row, widths, strict=False)] + [row[-1]]).rstrip()
            for row in rows]
