"""The errors that a user can meet, and the way a script ends on them."""

from collections.abc import Callable, Iterable
import difflib
import errno
import os
import signal
import sys
import time

WAIT_FOR_LAUNCHER_S = 5.0
"""How long a process other than the first keeps an error to itself; launchers end it sooner when the first fails."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system's words for a full disk."""


class UserError(Exception):
    """Something the user can mend: the text says what, where, what was found, what was expected and the remedy.

    Example: ``clip_0031: 80 frames; Wan needs 4n+1. Set target_frames to 77 or 81.``
    """


class ConfigError(UserError):
    """A flag, a TOML key or a combination of settings is wrong."""


class MediaError(UserError):
    """A picture, video or sound cannot be read or does not fit."""


class CacheError(UserError):
    """A cache entry is missing, stale, torn or outside its contract."""


class WeightsError(UserError):
    """A weights file is not what was asked for: wrong variant, missing or unexpected keys, truncated."""


class NetworkFileError(UserError):
    """A LoRA or condition file does not fit the model."""


class ConditionError(UserError):
    """A condition lacks an input or is used where it does not fit."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` (nearest: 'x')`` for the known name most like `word`, or an empty string when none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (nearest: '{matches[0]}')" if matches else ""


def raise_all(problems: list[str], error: type[UserError], heading: str) -> None:
    """Raise one `error` that lists every problem, a line each; do nothing when there is none."""
    if not problems:
        return
    if len(problems) == 1:
        raise error(f"{heading}: {problems[0]}")
    lines = "\n".join(f"  - {problem}" for problem in problems)
    raise error(f"{heading}: {len(problems)} problems\n{lines}")


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and end the process with an exit code that tells the truth.

    0 done (or the code that `main` returns); 1 a `UserError` or a full disk, told in one message without a traceback;
    130 after Ctrl-C, 143 after a SIGTERM that a script obeys. Any other exception is a defect of ours and keeps its
    traceback (exit code 1). What all processes of a launch meet is told once, by the first; what only another one meets
    is told by that one, with its number.
    """
    try:
        code = main()
    except UserError as error:
        _tell(str(error))
        code = 1
    except KeyboardInterrupt as stop:
        number = getattr(stop, "number", signal.SIGINT)
        by = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
        if _rank() == "0":
            print(f"stopped by {by}; what was finished is kept", file=sys.stderr)
        code = 128 + number
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        where = f" while writing {error.filename}" if error.filename else ""
        _tell(f"no space left{where} ({error.strerror}). Free some space and start again; finished files are kept.")
        code = 1
    sys.exit(code or 0)


def _tell(text: str) -> None:
    if (rank := _rank()) == "0":
        print(f"error: {text}", file=sys.stderr, flush=True)
        return
    try:
        time.sleep(WAIT_FOR_LAUNCHER_S)
    except KeyboardInterrupt:
        return
    print(f"error: process {rank}: {text}", file=sys.stderr, flush=True)


def _rank() -> str:
    return os.environ.get("RANK", "0")
