"""Which files a path means: one file, all shards of a set, an index, a pattern or a folder."""

from collections.abc import Sequence
from dataclasses import dataclass
import glob
import os
from pathlib import Path
import re

from common.errors import WeightsError, nearest
from wan.weights.files import read_json

SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)$")
INDEX_SUFFIX = ".index.json"
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@dataclass(frozen=True)
class FileSet:
    """The files of one model."""

    files: tuple[Path, ...]
    expected: tuple[str, ...] = ()
    """Tensor names that an index promised."""


def find_files(path: str | os.PathLike[str], preferred: Sequence[str] = ()) -> FileSet:
    """Files that `path` stands for.

    A shard (`name-00001-of-00006.safetensors`) means the whole set, `name.safetensors.index.json` the files that it
    lists, `*` and `?` are filled in, and in a folder the first of the `preferred` patterns that matches wins.

    Raises WeightsError for a missing file or shard, and for a folder that holds none or several models.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _from_folder(path, preferred)
    if not path.exists():
        matches = sorted(Path(name) for name in glob.glob(str(path))) if set("*?") & set(str(path)) else []
        if not matches:
            raise WeightsError(_not_found(path))
        return _one_model(path, matches)
    if path.name.endswith(INDEX_SUFFIX):
        return _from_index(path)
    return _all_shards(path) if SHARD.match(path.name) else FileSet((path,))


def _not_found(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path}: not found; the folder {path.parent} does not exist."
    names = sorted(entry.name for entry in path.parent.iterdir() if entry.name.endswith((*SUFFIXES, INDEX_SUFFIX)))
    return f"{path}: not found{nearest(path.name, names)}. Check the path."


def _all_shards(path: Path) -> FileSet:
    match = SHARD.match(path.name)
    assert match is not None
    names = [f"{match['stem']}-{number:05d}-of-{match['count']}{match['suffix']}"
             for number in range(1, int(match["count"]) + 1)]
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        raise WeightsError(f"{path}: {len(missing)} of {len(names)} shards are missing beside it: "
                           f"{', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}. Download them.")
    return FileSet(tuple(path.parent / name for name in names))


def _from_index(path: Path) -> FileSet:
    content = read_json(path)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
        raise WeightsError(f"{path}: has no 'weight_map' of tensor and file names. Download the index again.")
    names = sorted(set(places.values()))
    missing = [name for name in names if not (path.parent / name).exists()]
    if missing:
        raise WeightsError(f"{path}: {len(missing)} of the {len(names)} files that it lists are missing: "
                           f"{', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}. Download them.")
    return FileSet(tuple(path.parent / name for name in names), tuple(places))


def _from_folder(folder: Path, preferred: Sequence[str]) -> FileSet:
    for pattern in (*preferred, "*" + INDEX_SUFFIX, *(f"*{suffix}" for suffix in SUFFIXES)):
        matches = sorted(entry for entry in folder.glob(pattern) if entry.is_file())
        if matches:
            return _one_model(folder, matches)
    raise WeightsError(f"{folder}: no weights in this folder. Looked for {', '.join((*preferred, *SUFFIXES))}. "
                       "Give the file itself.")


def _one_model(path: Path, matches: list[Path]) -> FileSet:
    """The one model among `matches`; its shards count as one, and an index beside them speaks for them."""
    indices = [match for match in matches if match.name.endswith(INDEX_SUFFIX)]
    if len(indices) == 1:
        return _from_index(indices[0])
    models: dict[str, Path] = {}
    for match in matches:
        shard = SHARD.match(match.name)
        models.setdefault(f"{shard['stem']}-*-of-{shard['count']}{shard['suffix']}" if shard else match.name, match)
    if len(models) > 1:
        raise WeightsError(f"{path}: holds {len(models)} models ({', '.join(sorted(models)[:6])}"
                           f"{' …' if len(models) > 6 else ''}). Give the one that is meant.")
    return find_files(next(iter(models.values())))
