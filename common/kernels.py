"""Whether kernels of ours, written in Triton, can be had: each is tried in small before it is taken."""

from collections.abc import Callable
from importlib.util import find_spec

from common.logs import get_logger

log = get_logger(__name__)


def reason_against(attempt: Callable[[], str], without: str = "") -> str:
    """Why kernels cannot be had; an empty text where they can.

    `attempt` runs them and returns what was wrong with their numbers, or nothing. Without a C compiler or Python's
    headers Triton cannot start a kernel, on an unknown card it may not compile one. Such a reason is told behind
    `without`, the words for what is done then; a missing Triton (Windows, builds without CUDA) is no fault and is not.
    """
    if find_spec("triton") is None:
        return "Triton is not installed"
    try:
        reason = attempt()
    except Exception as error:  # noqa: BLE001 - no compiler, an unknown card, too little memory of its own: all is here
        reason = " ".join(f"{type(error).__name__}: {error}".split()[:40])
    if reason and without:
        log.warning("%s: %s", without, reason)
    return reason
