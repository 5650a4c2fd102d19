"""Does a LoRA learn as well with it? Compiling, float8 products, other attention against bfloat16, with a verdict.

    python -m benchmarks.quality_gate RESULTS                        # every variant, seeds 1 2 3, gradients
    python -m benchmarks.quality_gate RESULTS --variants fp8 --seeds 1
    python -m benchmarks.quality_gate RESULTS --parts large          # gradients of the 14B model's real sizes, on a GPU
    python -m benchmarks.quality_gate RESULTS --recipe demo          # the smaller training, for a CPU

Trains the embedded default (tools/proof/recipe.py) for 300 steps under each variant and seed, with the same noise and
order for all of a seed; takes the loss of held-out clips and that of the last 100 steps; then lets unseen faces say
unseen utterances, all generated in the same way, and measures mouths against sounds. A variant passes where both losses
lie within 2 % of bfloat16's with every seed, and its mean sync r is not below the lowest of bfloat16's seeds. Exit code
1 where one does not. Beside it: the relative error of the LoRA gradient of each block, before training and after it.

Appends JSON lines to RESULTS/quality_gate.jsonl and draws RESULTS/quality_gate_losses.png and _gradients.png. A later
call adds to them: the table is of the last line of each variant and seed that was made with the same settings.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
import json
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

from benchmarks.gate.variants import REFERENCE, VARIANTS

ROOT = Path(__file__).resolve().parent.parent
LINES = "quality_gate.jsonl"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("results", type=Path, help="folder of figures and pictures")
    made.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS),
                      help=f"default: all; {REFERENCE} must be among them, or have run before")
    made.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    made.add_argument("--parts", nargs="+", choices=("learn", "gradients", "large"), default=["learn", "gradients"])
    made.add_argument("--steps", type=int, default=300)
    made.add_argument("--recipe", choices=("demo", "full"), default="full",
                      help="full: four clips a step, rank 32; demo: one clip, rank 16")
    made.add_argument("--faces", type=int, default=2)
    made.add_argument("--sounds", type=int, default=5, help="each face says each of them")
    made.add_argument("--work", type=Path, default=ROOT / "demo-run" / "gate", help="folder of caches and checkpoints")
    made.add_argument("--parallel", type=int, help="variants at once (default: all on a GPU, one on a CPU)")
    made.add_argument("--deadline", type=float, default=1e9,
                      help="begin no further training of a variant after so many seconds")
    made.add_argument("--train_args", nargs=argparse.REMAINDER, default=[],
                      help="last: further flags of train_network.py for all, such as --compile_backend aot_eager")
    made.add_argument("--tiny", action="store_true", help="with --parts large: a small model, to see that it runs")
    made.add_argument("--here", help=argparse.SUPPRESS)
    return made


def main() -> int:
    """Run what was asked for in processes, then judge and draw."""
    given = parser().parse_args()
    given.results, given.work = given.results.resolve(), given.work.resolve()
    if given.here:
        return work(given)
    given.results.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    chains: list[list[str]] = [[name] for name in given.variants if "learn" in given.parts]
    if "gradients" in given.parts:  # they begin from what the reference's training wrote
        if [REFERENCE] not in chains:
            chains.append([])
        next(chain for chain in chains if chain in ([REFERENCE], [])).append("gradients")
    if chains:
        run_here(given, "cache", started)
    with ThreadPoolExecutor(given.parallel or _at_once()) as pool:
        list(pool.map(lambda chain: [run_here(given, part, started) for part in chain], chains))
    if "large" in given.parts:
        run_here(given, "large", started)
    return report(given)


def _at_once() -> int:
    import torch

    return len(VARIANTS) if torch.cuda.is_available() else 1


def run_here(given: argparse.Namespace, part: str, started: float) -> None:
    """One part in a process of its own, its output in a file of the work folder; an error costs only itself."""
    log = given.work / f"{part}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "benchmarks.quality_gate", *sys.argv[1:]]
    place = words.index("--train_args") if "--train_args" in words else len(words)
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run([*words[:place], "--here", part, *words[place:]], cwd=ROOT, stdout=file,
                              stderr=subprocess.STDOUT).returncode
    print(f"{part}: {'done' if code == 0 else f'exit code {code}, see {log}'} after {time.monotonic() - started:.0f} s",
          flush=True)
    if code:
        print("\n".join(log.read_text(encoding="utf-8").splitlines()[-6:]), flush=True)


def work(given: argparse.Namespace) -> int:
    """One part, here: the caches, the runs of a variant, gradients."""
    import torch

    from common.logs import setup_logging
    from wan.memory.fp8_model import fp8_products_everywhere

    setup_logging()
    failed = False
    with contextlib.nullcontext() if torch.cuda.is_available() else fp8_products_everywhere():
        for line in lines_of(given):
            failed |= "error" in line
            with (given.results / LINES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print({key: value for key, value in line.items() if key != "losses"}, flush=True)
    return int(failed)


def lines_of(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The figures of a part, each as soon as it is there."""
    judged = [name for name in given.variants if VARIANTS[name].is_judged]
    if given.here == "large":
        from benchmarks.gate.large import SIZE_14B, SIZE_TINY, large_lines

        yield from large_lines(SIZE_TINY if given.tiny else SIZE_14B, judged)
        return
    from benchmarks.gate.gradients import gradient_lines
    from benchmarks.gate.learning import commands_of, facts, learn

    setting = setting_of(given)
    if given.here == "cache":
        commands = commands_of(setting, VARIANTS[REFERENCE], 0)
        commands.begin()
        commands.cache()
    elif given.here == "gradients":
        yield from gradient_lines(setting, judged, given.seeds[0])
    else:
        begun = time.monotonic()
        for seed in given.seeds:
            try:
                if time.monotonic() - begun > given.deadline:
                    raise TimeoutError(f"left out, because the {given.deadline:g} s of --deadline are over")
                yield learn(setting, VARIANTS[given.here], seed)
            except Exception as error:  # noqa: BLE001 - the other seeds shall be measured all the same
                yield {"kind": "run", "variant": given.here, "seed": seed, **facts(setting),
                       "error": f"{type(error).__name__}: {error}"[:300]}


def setting_of(given: argparse.Namespace) -> Any:
    """What all runs have in common."""
    from benchmarks.gate.learning import Setting

    return Setting(given.work, given.recipe, given.steps, given.faces, given.sounds, tuple(given.train_args))


def report(given: argparse.Namespace) -> int:
    """Print tables, draw pictures; 1 where a variant fails or could not be measured."""
    from benchmarks.gate import verdict
    from benchmarks.gate.learning import facts
    from benchmarks.gate.pictures import draw_gradients, draw_losses

    path = given.results / LINES
    lines: Sequence[Mapping[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
                                          ] if path.exists() else []
    settings, failed = facts(setting_of(given)), False
    runs_lines = verdict.latest(lines, "run", ("variant", "seed"), settings)
    runs = verdict.runs_of(runs_lines)
    for line in runs_lines:
        if "error" in line:
            print(f"{line['variant']}, seed {line['seed']}: {line['error']}")
    if runs:
        print(f"\n{settings}\n{verdict.table(runs)}\n")
    if REFERENCE in runs:
        draw_losses(runs, given.results / "quality_gate_losses.png")
    if "learn" in given.parts:
        for name in given.variants:
            wanted = {(name, seed) for seed in given.seeds}
            missing = wanted - {(line["variant"], line["seed"]) for line in runs_lines if "error" not in line}
            failed |= bool(missing) or REFERENCE not in runs or (
                VARIANTS[name].is_judged and bool(verdict.judge(runs, name).problems))
    gradients = verdict.latest(lines, "gradients", ("model", "when", "variant"),
                               {name: settings[name] for name in ("device", "torch")})
    if gradients:
        print(verdict.gradient_table(gradients))
        draw_gradients(gradients, given.results / "quality_gate_gradients.png")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
