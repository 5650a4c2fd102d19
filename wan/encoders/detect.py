"""Telling from a file's keys and shapes which encoder it holds."""

from collections.abc import Iterable

from common.errors import WeightsError
from wan.weights.recognise import looks_like
from wan.weights.source import WeightsSource


def need(source: WeightsSource, keys: Iterable[str], *, what: str, remedy: str) -> None:
    """WeightsError unless `source` has all `keys`, by which `what` is known; it says what the file looks like."""
    missing = [key for key in keys if key not in source]
    if missing:
        raise WeightsError(f"{source.path}: this is not {what}: it lacks {', '.join(missing)}; "
                           f"{looks_like(source.keys())}. {remedy}")


def count_blocks(source: Iterable[str], prefix: str) -> int:
    """Number of blocks in keys such as ``blocks.7.norm1.weight`` (prefix ``blocks.``): the highest number plus one."""
    numbers = [key[len(prefix):].partition(".")[0] for key in source if key.startswith(prefix)]
    return max((int(number) for number in numbers if number.isdigit()), default=-1) + 1
