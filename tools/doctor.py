"""Examine this machine and say what to do: Python, packages, GPU, attention, video, folders, trackers, settings.

    python tools/doctor.py
    python tools/doctor.py --output_dir /data/output --cache_dir /data/cache --json doctor.json

One line for each finding: ok, warn (works, with a drawback) or FAIL (something that a run needs does not work), and
under the last two what to do. Kernels and codecs are run and their results compared, not only looked up. Nothing is
installed, changed or sent anywhere. Exit code 0 when nothing FAILs, 1 otherwise.
"""

import argparse
import sys

if sys.version_info < (3, 11):
    sys.exit("FAIL  python: %d.%d; OmniTuner needs 3.11 or newer\n      -> install it and make an environment with it: "
             "python3.12 tools/install.py" % sys.version_info[:2])

import faulthandler  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402
import time  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def parser() -> argparse.ArgumentParser:
    """The flags."""
    flags = argparse.ArgumentParser(prog="doctor", description=__doc__,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output_dir", type=Path, default=Path(), help="where runs shall write; default: this folder")
    flags.add_argument("--cache_dir", type=Path, default=Path(), help="where caches shall lie; default: this folder")
    flags.add_argument("--json", type=Path, metavar="PATH", help="write the findings there as well, to attach to a "
                                                                 "question or to compare machines")
    return flags


def main(arguments: "list[str] | None" = None) -> int:
    """Examine, print each finding when it is there, and count."""
    given = parser().parse_args(arguments)

    from tools.health.finding import Finding, Patient
    from tools.health.gpu import has_cuda
    from tools.health.table import findings

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    started = time.monotonic()
    found: list[Finding] = []
    for finding in findings(Patient(given.output_dir, given.cache_dir, "cuda:0" if has_cuda() else "cpu")):
        found.append(finding)
        print(finding.text(), flush=True)
    count = {status: sum(one.status == status for one in found) for status in ("ok", "warn", "FAIL")}
    print(f"\n{count['ok']} ok, {count['warn']} warn, {count['FAIL']} FAIL in {time.monotonic() - started:.1f} s")
    if given.json:
        try:
            write_json(given.json, found)
        except OSError as error:
            print(f"error: --json {given.json}: cannot be written ({error.strerror or error}).", file=sys.stderr)
            return 1
    return 1 if count["FAIL"] else 0


def write_json(path: Path, found: "list") -> None:
    """All findings, when and of which version, as a file."""
    from dataclasses import asdict
    from datetime import UTC, datetime

    from common.atomic import write_text
    from common.version import VERSION

    report = {"omnituner": VERSION, "time": datetime.now(UTC).isoformat(timespec="seconds"),
              "failed": sum(one.status == "FAIL" for one in found), "findings": [asdict(one) for one in found]}
    write_text(path, json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    faulthandler.enable()  # a native library that crashes says where; the last line printed says after which check
    sys.exit(main())
