"""kill -9 at random moments against a run that was left alone: ``python -m benchmarks.faults.kill``.

Forty steps straight, then the same forty with a kill of all processes at each of twenty moments (drawn from a fixed
seed, anywhere between the start of Python and some steps on), each followed by the same command again. Weights,
optimiser, random states, loss history and learning rates must be equal bit for bit, every step written down once, and
nothing unfinished left.
"""

import argparse
from pathlib import Path
import random
import statistics
import sys
import tempfile

from benchmarks.faults.runs import Training, differences, prepare


def main() -> int:
    """Measure and print; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder to keep (default: a temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        return compare(given.out or Path(name) / "with space", given)


def compare(folder: Path, given: argparse.Namespace) -> int:
    """Both runs in `folder`."""
    data = prepare(folder)
    more = ("--max_train_steps", str(given.steps), "--save_state_every_n_steps", "3", "--save_every_n_steps", "10",
            "--save_last_n_steps", "10", "--validation_count", "1", "--validate_every_n_steps", "20")
    straight = Training(data, folder / "straight", given.processes, more)
    code, first, whole = straight.timed()
    if code:
        print(f"the straight run ended with {code}: {straight.out.with_suffix('.log').read_text()[-2000:]}")
        return 1
    a_step = statistics.median(line["seconds"] for line in straight.lines if "loss" in line)
    killed = Training(data, folder / "killed", given.processes, more)
    moments = random.Random(given.seed)
    print(f"{given.steps} steps in {given.processes} processes; straight: {whole:.1f} s, {first:.1f} s of them to the "
          "first step\n\n"
          "| kill | moment, s | step reached | left unfinished |\n|---|---|---|---|")
    was_killed = True
    for number in range(1, given.kills + 1):
        # Every fifth before anything is done, the others within some steps and their saving.
        is_early = number % 5 == 0
        after = moments.uniform(0, first / 2 if is_early else 4 * a_step)
        was_killed = killed.kill_after(after, of_steps=not is_early)
        moment = f"{after:.2f} after the {'start' if is_early else 'first step'}"
        print(f"| {number} | {moment} | {killed.step}{'' if was_killed else ' (had ended)'} | "
              f"{', '.join(killed.rest) or 'nothing'} |", flush=True)
        if not was_killed:
            break
    code = killed.finish()
    unequal = differences(straight, killed) if not code else [f"exit code {code}"]
    checks = {
        f"killed {given.kills} times on the way": was_killed,
        "weights, optimiser, random states, losses and rates equal": not unequal,
        "every step written once": killed.steps == list(range(1, given.steps + 1)),
        "nothing unfinished left": not killed.rest,
    }
    print("\n| goal | met |\n|---|---|")
    for goal, is_met in checks.items():
        print(f"| {goal} | {'yes' if is_met else 'NO'} |")
    if unequal:
        print("\n".join(["", *unequal[:20]]))
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
