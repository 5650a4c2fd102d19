"""Every row of the table of goals, the most important first, each part in a process of its own; then the table.

    python -m benchmarks.speed RESULTS --list                    # rows and parts with about how long each takes
    python -m benchmarks.speed RESULTS --commit 1a2b3c4          # everything: about 45 minutes on one H200
    python -m benchmarks.speed RESULTS --only 0 1 2 vae --deadline 560
    python -m benchmarks.speed RESULTS --tiny                    # on the CPU, to see that it runs

`--only` takes numbers of the DiT's rows, parts of their names, and names of parts. Nothing is begun that would end
after --deadline seconds; a later call with other rows appends to the same file, RESULTS/speed.jsonl, from which
`benchmarks.speed_table` prints. Afterwards, on any machine: `python -m benchmarks.estimates RESULTS`.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
import subprocess
import sys
import time

from benchmarks.dit_rows import GROUPS, ROWS, chosen
from benchmarks.dit_speed import ROOT, run_rows
from benchmarks.speed_table import table


@dataclass(frozen=True)
class Part:
    """A benchmark that is no row of the DiT's."""

    name: str
    words: tuple[str, ...]
    """Module and arguments; `{}` stands for the folder of results."""
    seconds: int
    """On an H200, about."""
    knows_steps: str = ""
    """Its flag for the number of measured calls."""


PARTS = (
    Part("vae", ("vae_speed", "--out", "{}", "--parts", "ceilings,encode,decode", "--only",
                 "bf16 fused, tuned", "compiled, tuned", "fp32 plain"), 180, "--rounds"),
    Part("generation", ("generation_speed", "{}", "--parts", "forwards", "generations", "fast"), 260, "--repeats"),
    Part("caching", ("vae_speed", "--out", "{}", "--parts", "ceilings,end"), 150),
    Part("small card", ("small_card", "{}", "--rows", "0", "1", "3", "4"), 200, "--steps"),
)
BEFORE_PLAIN = 4
"""Groups of the DiT's rows that come before the other parts; the plain paths come after them."""


def asked_for(only: list[str] | None) -> tuple[list[int], list[Part]]:
    """Rows and parts of --only; a name of a part is not looked for in the names of rows."""
    if only is None:
        return list(range(len(ROWS))), list(PARTS)
    names = {part.name for part in PARTS}
    return chosen(ROWS, [text for text in only if text not in names]), [one for one in PARTS if one.name in only]


def run_part(part: Part, given: argparse.Namespace, until: float) -> None:
    """One part, if there is time."""
    if time.time() + part.seconds > until:
        print(f"left out, because the time is over: {part.name}", flush=True)
        return
    module, *words = part.words
    if given.tiny and part.name == "small card":
        words = ["{}"]
    words = [str(given.results) if word == "{}" else word for word in words]
    words += ["--tiny"] if given.tiny else []
    words += ["--commit", given.commit] if given.commit else []
    words += [part.knows_steps, str(given.steps)] if given.steps and part.knows_steps else []
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *words], cwd=ROOT,
                          stderr=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stderr[-2000:], flush=True)
    print(f"{part.name}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    """Measure what was asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="+", help="rows by number or part of the name, and parts by name")
    parser.add_argument("--list", action="store_true", help="only print rows and parts")
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--steps", type=int, help="measured steps of every row")
    parser.add_argument("--deadline", type=float, default=1e9, help="begin nothing that would end after this many s")
    parser.add_argument("--commit", help="of what is measured, where the tree came without its history")
    given = parser.parse_args()
    rows, parts = asked_for(given.only)
    if given.list:
        print("\n".join(f"{number:>10}  {ROWS[number].seconds:4d} s  {ROWS[number].name}" for number in rows))
        print("\n".join(f"{part.name:>10}  {part.seconds:4d} s  {part.words[0]}" for part in parts))
        return
    given.results.mkdir(parents=True, exist_ok=True)
    until = time.time() + given.deadline
    more = [*(["--tiny"] if given.tiny else []), *(["--steps", str(given.steps)] if given.steps else []),
            *(["--commit", given.commit] if given.commit else [])]
    first = sum(len(group) for group in GROUPS[:BEFORE_PLAIN])
    run_rows([number for number in rows if number < first], given.results, more, until)
    for part in parts:
        run_part(part, given, until)
    run_rows([number for number in rows if number >= first], given.results, more, until)
    print(table(given.results))


if __name__ == "__main__":
    main()
