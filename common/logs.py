"""Logging: one logger a module, set up once by the scripts."""

import logging
import os
import sys


def get_logger(name: str) -> logging.Logger:
    """The logger of a module: ``log = get_logger(__name__)``."""
    return logging.getLogger(name)


def is_main_process() -> bool:
    """Whether this is process 0 of a launch (accelerate and torchrun set RANK)."""
    return os.environ.get("RANK", "0") == "0"


def setup_logging(verbose: bool = False, *, others: int = logging.WARNING) -> None:
    """Plain lines on stderr, from processes other than the first only those of level `others` and above.

    Called by entry points only. Where all processes meet the same warnings, `others` is ERROR.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    level = logging.DEBUG if verbose else logging.INFO
    if not is_main_process():
        level = others
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr, force=True)
    for noisy in ("matplotlib", "PIL", "urllib3", "filelock", "torio", "libav", "bitsandbytes"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
