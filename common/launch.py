"""Several processes on a CPU: what `accelerate launch --cpu --num_processes N` promises and does not do by itself."""

from collections.abc import Sequence
import os
import signal
import sys

from common.errors import ConfigError
from common.logs import get_logger

log = get_logger(__name__)

REMEDY = ("Start them with: torchrun --nproc_per_node N SCRIPT …, or: accelerate launch --multi_gpu --num_processes N "
          "SCRIPT … (which takes the CPU where there is no GPU).")


def start_missing_processes() -> int | None:
    """Start the processes that accelerate was asked for and left out, and return their exit code; None otherwise.

    Off GPUs, `accelerate launch --num_processes N` (N > 1, without MPI) runs the script once, as if N were 1, and only
    a master address without ranks tells of the wish. N is then read from its command line and given to torchrun.
    Raises ConfigError where it does not stand there.

    A single process that accelerate has started ends with it too, as by SIGTERM (on Linux).
    """
    if "RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return None
    if "MASTER_ADDR" not in os.environ:
        if any("accelerate" in os.path.basename(word) for word in _parents_words()[:3]):
            _end_with_parent()
        return None
    wanted = _processes_asked_of(_parents_words())
    if wanted is None or os.environ["MASTER_ADDR"] not in ("127.0.0.1", "localhost"):
        raise ConfigError(f"accelerate launch was asked for several processes and started one. {REMEDY}")
    if wanted < 2:
        return None
    log.info("accelerate launch starts one process on a CPU; torchrun starts the %d that were asked for.", wanted)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    _end_with_parent()
    return _torchrun(["--standalone", "--nproc_per_node", str(wanted), *sys.argv])


def refuse_several(script: str, instead: str) -> None:
    """ConfigError where a launch has started more than one process of a script that knows nothing of the others."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1:
        raise ConfigError(f"{script} works in one process, and {started} were started: each would write the same "
                          f"files. Start it with python; {instead}")


def _end_with_parent() -> None:
    """Have SIGTERM come, which torchrun passes on, when accelerate ends: a SIGTERM of its own it keeps to itself."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


_PR_SET_PDEATHSIG = 1


def _torchrun(words: list[str]) -> int:
    """Exit code of a launch. The processes have told what failed, so that torchrun's own account of it is left out.

    A process that the system ended could not; that is told here.
    """
    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        main(words)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        log.error("error: process %s was ended by %s%s", rank, signal.Signals(-failure.exitcode).name,
                  ", as a system does that has no memory left" if failure.exitcode == -signal.SIGKILL else "")
        return 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def _parents_words() -> list[str]:
    import psutil

    try:
        return list(psutil.Process(os.getppid()).cmdline())
    except psutil.Error:
        return []


def _processes_asked_of(words: Sequence[str]) -> int | None:
    """Value of ``--num_processes`` on a command line of accelerate."""
    for i, word in enumerate(words):
        name, equals, value = word.replace("-", "_").partition("=")
        if name != "__num_processes":
            continue
        value = value if equals else words[i + 1] if i + 1 < len(words) else ""
        return int(value) if value.isdigit() else None
    return None
