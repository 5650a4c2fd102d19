"""Which media files are held out of a training: by share, by number, or by name."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from common.errors import ConfigError, nearest, raise_all
from common.fingerprint import text_hash
from dataset.plan import TrainingItem

_SHOWN = 4


def hold_out(clips: Sequence[TrainingItem], *, share: float, count: int | None, seed: int, names: Sequence[str] = ()
             ) -> tuple[list[TrainingItem], list[TrainingItem]]:
    """(clips to train on, clips to measure on), each in the order of `clips`.

    Media items are held out whole, with every clip that is cut from them: those of `names`, or `count` of them, or
    `share` of them (rounded, and at least one), or none. Where no names are given they are those whose content, hashed
    with `seed`, comes first, so neither other files nor the order of the dataset bring an item to the other side, but
    for those that give way to added ones. Copies of a file are one item. Raises ConfigError where nothing would be left
    to train on, and for names that the dataset does not have.
    """
    contents = {clip.item.content: clip.item.name for clip in clips}
    if names:
        flag, held_out = "--validation_items", _named(clips, names)
        wanted = len(held_out)
    else:
        flag = f"--validation_count {count}" if count is not None else f"--validation_split {share:g}"
        wanted = count if count is not None else max(1, round(share * len(contents))) if share else 0
        held_out = set(sorted(contents, key=lambda content: text_hash(f"{seed}/{content}"))[:wanted])
    if wanted and wanted >= len(contents):
        raise ConfigError(f"{flag}: the dataset has {len(contents)} media "
                          f"{'item' if len(contents) == 1 else 'items'} ({', '.join([*contents.values()][:_SHOWN])}), "
                          f"and {wanted} would be held out: nothing is left to train on. Hold out fewer, or add clips.")
    return ([clip for clip in clips if clip.item.content not in held_out],
            [clip for clip in clips if clip.item.content in held_out])


def listed_names(given: Sequence[str]) -> list[str]:
    """The names of `--validation_items`, text files replaced by their lines (empty ones and # comments left out)."""
    return [name for one in given for name in _lines(one)]


def _lines(given: str) -> Iterator[str]:
    if not given.lower().endswith(".txt"):
        yield given
        return
    try:
        lines = Path(given).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"--validation_items {given}: cannot be read ({why}). It is a text file with the name of one "
                          "media file a line.") from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise ConfigError(f"--validation_items {given}: holds no name. Write one media file a line.")
    yield from names


def _named(clips: Sequence[TrainingItem], names: Sequence[str]) -> set[str]:
    """Contents of the media that are meant by `names`: relative names as the log shows them, or bare file names."""
    items = {clip.item.name: clip.item for clip in clips}
    by_file: dict[str, list[str]] = {}
    for name in items:
        by_file.setdefault(Path(name).name, []).append(name)
    found, problems = set(), []
    for name in names:
        matches = [name] if name in items else by_file.get(name, [])
        if not matches:
            problems.append(f"'{name}' is no media file of the dataset{nearest(name, [*items, *by_file])}.")
        elif len({items[match].content for match in matches}) > 1:
            problems.append(f"'{name}' is the name of {len(matches)} files ({', '.join(matches[:_SHOWN])}). Say which.")
        else:
            found.add(items[matches[0]].content)
    raise_all(problems, ConfigError, "--validation_items")
    return found
