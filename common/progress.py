"""The one progress bar style: fixed width, silent off a terminal and off the first process."""

from collections.abc import Iterable
import sys
from typing import Any

from common.logs import is_main_process


def progress(iterable: Iterable[Any] | None = None, *, total: int | None = None, desc: str = "", unit: str = "it",
             initial: int = 0, form: str | None = None) -> Any:
    """A tqdm bar over `iterable`, or one to be updated by hand; plain code may use it with or without a terminal.

    `form` is tqdm's `bar_format`, where its own has no room for what is shown beside it.
    """
    from tqdm import tqdm

    return tqdm(iterable, total=total, desc=desc, unit=unit, initial=initial, ncols=100, dynamic_ncols=False,
                bar_format=form, disable=not (sys.stderr.isatty() and is_main_process()))
