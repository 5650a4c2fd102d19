"""What the figures say: for each variant its losses and sync beside the reference's, and whether it passes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import math
from statistics import mean
from typing import Any

from benchmarks.gate.variants import REFERENCE, VARIANTS

LOSS = 0.02
"""Largest relative difference of a final loss from the reference's with the same seed."""
Runs = Mapping[str, Mapping[int, Mapping[str, Any]]]
"""Variant → seed → the line of its run."""


@dataclass(frozen=True)
class Verdict:
    """A variant's figures over the seeds that the reference ran too."""

    variant: str
    seeds: int
    held_out: float
    """Final loss on held-out clips, mean over the seeds."""
    held_out_off: float
    """Of its relative differences from the reference's with the same seed, the one farthest from 0."""
    trained: float
    """Training loss of the last steps, mean over the seeds."""
    trained_off: float
    sync: tuple[float | None, ...]
    """Mean r of each seed."""
    problems: tuple[str, ...]
    """Why it fails; empty where it passes."""


def latest(lines: Iterable[Mapping[str, Any]], kind: str, keys: Sequence[str], where: Mapping[str, Any]
           ) -> list[Mapping[str, Any]]:
    """The last line of `kind` for each value of `keys`, among those that agree with `where`."""
    found = {}
    for line in lines:
        if line["kind"] == kind and all(line.get(name) == value for name, value in where.items()):
            found[tuple(line.get(key) for key in keys)] = line
    return [*found.values()]


def runs_of(lines: Iterable[Mapping[str, Any]]) -> Runs:
    """By variant, in the order of `VARIANTS`, and seed; runs that broke off are left out."""
    whole = [line for line in lines if "error" not in line]
    table = {name: {line["seed"]: line for line in sorted(whole, key=lambda one: one["seed"])
                    if line["variant"] == name} for name in VARIANTS}
    return {name: runs for name, runs in table.items() if runs}


def spread(runs: Runs) -> tuple[float, float] | None:
    """Lowest and highest mean r of the reference's seeds; None for fewer than two of them."""
    values = [one["mean_r"] for one in runs.get(REFERENCE, {}).values() if one["mean_r"] is not None]
    return (min(values), max(values)) if len(values) > 1 else None


def judge(runs: Runs, name: str) -> Verdict:
    """The variant beside the reference. KeyError where they have no seed in common."""
    reference, own = runs[REFERENCE], runs[name]
    seeds = [seed for seed in own if seed in reference]
    if not seeds:
        raise KeyError(f"no seed of {name} was run with {REFERENCE}")
    held_out, trained = (_farthest([own[seed][key] / reference[seed][key] - 1 for seed in seeds])
                         for key in ("held_out_loss", "trained_loss"))
    sync = tuple(own[seed]["mean_r"] for seed in seeds)
    problems = [f"{what} loss {off:+.1%}" for what, off in (("held-out", held_out), ("training", trained))
                if not abs(off) <= LOSS]  # a loss that is no number fails too
    known = [value for value in sync if value is not None]
    bounds = spread(runs)
    if len(known) < len(sync):
        problems.append("a mouth could not be measured")
    elif bounds is not None and mean(known) < bounds[0]:
        problems.append(f"sync r {mean(known):.3f}, below {bounds[0]:.3f}")
    return Verdict(name, len(seeds), mean(own[seed]["held_out_loss"] for seed in seeds), held_out,
                   mean(own[seed]["trained_loss"] for seed in seeds), trained, sync, tuple(problems))


def _farthest(values: Sequence[float]) -> float:
    return max(values, key=lambda value: math.inf if math.isnan(value) else abs(value))


def table(runs: Runs) -> str:
    """A line a variant."""
    if REFERENCE not in runs:
        return f"no run of {REFERENCE}: nothing to compare with"
    bounds = spread(runs)
    rows = [
        "| variant | seeds | held-out loss (largest difference of a seed) | training loss, last steps (the same) | "
        "sync r, mean (each seed) | verdict |", "|---|---|---|---|---|---|"]
    for name in runs:
        one = judge(runs, name)
        known = [value for value in one.sync if value is not None]
        sync = f"{mean(known):.3f} ({', '.join('–' if r is None else f'{r:.3f}' for r in one.sync)})" if known else "–"
        rows.append(f"| {name} | {one.seeds} | {one.held_out:.4f} ({one.held_out_off:+.2%}) | {one.trained:.4f} "
                    f"({one.trained_off:+.2%}) | {sync} | {_words(one, bounds)} |")
    return "\n".join(rows)


def _words(one: Verdict, bounds: tuple[float, float] | None) -> str:
    if not VARIANTS[one.variant].is_judged:
        return "reference" if one.variant == REFERENCE else "yardstick"
    if one.problems:
        return f"FAIL: {'; '.join(one.problems)}"
    return "pass" if bounds is not None else "pass (losses; sync needs two seeds of the reference)"


def gradient_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line a measurement: error of all gradients, of the best and of the worst block."""
    rows = ["| LoRA gradient | of | against | all of it | least of a block | most of a block |",
            "|---|---|---|---|---|---|"]
    for line in lines:
        head = f"| {line['model']}, {line['when']} | {line['variant']} | "
        if "error" in line:
            rows.append(f"{head}{line['error'][:100]} | | | |")
            continue
        blocks = [value for name, value in line["by_block"].items() if name != "condition"]
        rows.append(f"{head}{line['against']} | {line['whole']:.2%} | {min(blocks):.2%} | {max(blocks):.2%} |")
    return "\n".join(rows)
