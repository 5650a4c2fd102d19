"""Prints the table of goals, and every measured row, from RESULTS/speed.jsonl.

    python -m benchmarks.speed_table RESULTS

A goal is passed when the fastest row that may fill it passes it; goals are scaled by nothing, so the ceilings of each
row's process stand beside it (goals were set for a bf16 product >= 780 and cuDNN attention >= 570 TFLOP/s forward). Of
rows of one name the last one counts.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.records import lines_of

Line = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    work: str
    musubi: str
    """What musubi-tuner 0.3.4 took on an H200 (measured for the goals, not by these scripts)."""
    goal: float
    stretch: float | None
    keys: tuple[str, ...]
    """`goal` of the rows that may fill the goal; `stretch_keys` less exact ones that may fill it beside them."""
    stretch_keys: tuple[str, ...] = ()
    most_gib: float | None = None
    """Peak of tensors that must not be passed."""
    unit: str = "s"
    is_least: bool = False
    """Whether larger is better."""


GOALS = (
    Goal("14B i2v LoRA step, 480x832x81", "14.14 s, 56.9 GiB", 7.5, 6.9, ("14B exact",)),
    Goal("same, at most 44 GiB", "14.25 s, 42.9 GiB", 9.0, 8.0, ("14B 44 GiB",), most_gib=44.0),
    Goal("1.3B t2v LoRA step, 480x832x81", "2.90 s, 10.6 GiB", 1.56, 1.35, ("1.3B",)),
    Goal("14B step, 480x480x25", "", 0.60, 0.57, ("14B square",)),
    Goal("14B forward, LoRA merged, 480x832x81", "3.32 s; compiled 2.77 s", 2.0, 1.88, ("forward",),
         ("forward 8-bit",)),
    Goal("VAE encode, 81x480x832", "1.03 s", 0.46, 0.35, ("VAE encode",)),
    Goal("VAE decode, 81x480x832", "1.65 s", 0.86, 0.6, ("VAE decode",)),
    Goal("cache_latents end to end, mp4, of the VAE's rate", "", 0.95, None, ("caching",), unit="of", is_least=True),
    Goal("14B clip, 4 steps, no CFG, with decode", "LightX2V reports 14 s", 8.9, 8.3, ("clip",)),
    Goal("14B step at 480x832x81 in 24 GB, of our unswapped full-checkpoint step", "does not get there; 31.3 s at "
         "34.9 GiB", 1.25, 1.1, ("24 GB",), most_gib=24e9 / 2**30, unit="x"),
)
OWN_TABLES = ("rows", "attention")
"""Parts in microseconds, whose scripts print tables of their own."""
UNSWAPPED = "cuDNN, fp8 products, all recomputed"
"""Row that the one of 24 GB is compared with."""


def latest(lines: Iterable[Line]) -> list[Line]:
    """The last line of each row, where it was measured without an error if it ever was."""
    found: dict[tuple[str, str, str], Line] = {}
    for line in lines:
        if "row" in line:
            key = line["part"], line["row"], line["gpu"]
            if "error" not in line or key not in found or "error" in found[key]:
                found.pop(key, None)
                found[key] = line
    return list(found.values())


def goal_of(line: Line) -> str:
    """The goal that a line may fill."""
    return str(line.get("goal") or line.get("asked", {}).get("goal", ""))


def value_of(line: Line, goal: Goal, lines: list[Line]) -> float | None:
    """What is compared with the goal: seconds, a share, or a ratio to the unswapped step of the same size."""
    if goal.unit == "of":
        return float(line["of_vae"]) if "of_vae" in line else None
    if "seconds" not in line:
        return None
    if goal.unit == "s":
        return float(line["seconds"])
    plain = [one["seconds"] for one in lines if one.get("seconds") and UNSWAPPED in one["row"]
             and (one["asked"]["task"], one["asked"]["grid"]) == (line["asked"]["task"], line["asked"]["grid"])]
    return float(line["seconds"]) / plain[-1] if plain else None


def best(goal: Goal, keys: tuple[str, ...], lines: list[Line]) -> tuple[float, Line] | None:
    """The best value among the rows that may fill a goal, within its memory."""
    found = []
    for line in lines:
        value = value_of(line, goal, lines) if goal_of(line) in keys and not line.get("is_tiny") else None
        if value is not None and not (goal.most_gib and line.get("allocated_gib", 0.0) > goal.most_gib):
            found.append((value, line))
    if not found:
        return None
    return (max if goal.is_least else min)(found, key=lambda one: one[0])


def goals_table(lines: list[Line]) -> str:
    """The table of goals."""
    head = ("| work | musubi-tuner 0.3.4 | goal | stretch | measured | GiB allocated / reserved | of our plain path | "
            "passed | row | ceilings: bf16 product / attention forward / backward, TFLOP/s |")
    rows = [head, "|---" * 10 + "|"]
    for goal in GOALS:
        pairs = [best(goal, goal.keys, lines)]
        if goal.stretch_keys:
            pairs.append(best(goal, goal.stretch_keys, lines))
        if not any(pairs):
            pairs = [None]
        for number, pair in enumerate(pairs):
            if pair is not None or number == 0:
                rows.append(_goal_row(goal, pair, lines, is_stretch=number == 1))
    return "\n".join(rows)


def _goal_row(goal: Goal, pair: tuple[float, Line] | None, lines: list[Line], *, is_stretch: bool) -> str:
    sign, unit = (">=" if goal.is_least else "<="), {"s": " s", "of": "", "x": " x"}[goal.unit]
    marks = [f"{sign} {value:g}{unit}" if value is not None else "-" for value in (goal.goal, goal.stretch)]
    cells = [goal.work, goal.musubi or "-", *marks]
    if pair is None:
        return "| " + " | ".join([*cells, "not measured", "", "", "", "", ""]) + " |"
    value, line = pair
    passes: Callable[[float | None], bool] = lambda mark: mark is not None and (  # noqa: E731
        value >= mark if goal.is_least else value <= mark)
    if is_stretch:
        verdict = "stretch" if passes(goal.stretch) else "yes, less exact" if passes(goal.goal) else "no"
    else:
        verdict = "stretch" if passes(goal.stretch) else "yes" if passes(goal.goal) else "no"
    shown = f"{value:.3f}{unit}" + (f" ({line['seconds']:.2f} s)" if goal.unit == "x" else "")
    return "| " + " | ".join([*cells, shown, memory(line), ratio(line, lines), verdict, line["row"],
                              ceilings_of(line)]) + " |"


def memory(line: Line) -> str:
    """Peaks of tensors and of the allocator."""
    known = [f"{line[name]:.1f}" if name in line else "" for name in ("allocated_gib", "reserved_gib")]
    return " / ".join(known) if known[1] else known[0]


def ratio(line: Line, lines: list[Line]) -> str:
    """Of our plain path's seconds for the same work, measured on the same GPU."""
    if "of_plain" in line:
        return f"{line['of_plain']:.3f}"
    asked = line.get("asked")
    if asked is None or "seconds" not in line:
        return ""
    same = [one for one in lines if one.get("asked", {}).get("is_plain") and one.get("seconds") and
            one["gpu"] == line["gpu"] and all(one["asked"][key] == asked[key] for key in ("task", "grid", "kind"))]
    return f"{line['seconds'] / same[-1]['seconds']:.3f}" if same else ""


def ceilings_of(line: Line) -> str:
    """Of the row's process."""
    return " / ".join(f"{value:.0f}" for value in line.get("ceilings", {}).values())


def rows_table(lines: list[Line]) -> str:
    """Every row, with what the planner and the preflight say of it."""
    rows = ["| row | s | GiB allocated / reserved | planner, GiB | preflight, GiB | of our plain path | settings | "
            "compiling the first step | commit, date |", "|---" * 9 + "|"]
    for line in lines:
        if line["part"] in OWN_TABLES:
            continue
        if "error" in line:
            rows.append(f"| {line['row']} | failed: {str(line['error'])[:120]} | | | | | | | {_when(line)} |")
            continue
        if "seconds" not in line:
            continue
        settings = line.get("settings", {})
        words = [str(settings.get("activations", ""))]
        words += [f"{settings['swapped']} swapped"] if settings.get("swapped") else []
        words += ["offload"] if settings.get("offloads") else []
        compiling = ""
        if line.get("graphs"):
            compiling = f"{line['all_s'][0]:.0f} s, {line['graphs']} graphs, {line['graph_breaks']} breaks"
        if line.get("fell_back"):
            compiling = "could not be compiled"
        rows.append(f"| {line['row']} | {line['seconds']:.3f} | {memory(line)} | {_estimate(line, 'planner_gib')} | "
                    f"{_estimate(line, 'preflight_gib')} | {ratio(line, lines)} | {', '.join(filter(None, words))} | "
                    f"{compiling} | {_when(line)} |")
    return "\n".join(rows)


def _when(line: Line) -> str:
    return f"{line['commit']}, {line['date'][:10]}"


def _estimate(line: Line, name: str) -> str:
    estimate = line.get("estimates", {}).get(name)
    if estimate is None:
        return ""
    if not line.get("allocated_gib"):
        return f"{estimate:.1f}"
    return f"{estimate:.1f} ({100 * (estimate / line['allocated_gib'] - 1):+.1f} %)"


def with_estimates(lines: Iterable[Line]) -> list[Line]:
    """The rows, each with the estimates that `benchmarks.estimates` wrote for its settings."""
    every = list(lines)
    estimates = {line["of"]: line["estimates"] for line in every if "estimates" in line}
    return [line | {"estimates": estimates.get(key_of(line), {})} for line in latest(every)]


def key_of(line: Line) -> str:
    """What estimates hang on: model, size, numbers and the settings that were measured."""
    asked, settings = line.get("asked"), line.get("settings")
    if asked is None or settings is None:
        return ""
    return repr([asked[key] for key in ("task", "grid", "compiled", "fp8", "kind")] + sorted(settings.items()))


def table(folder: Path) -> str:
    """Both tables."""
    lines = with_estimates(lines_of(folder))
    if not lines:
        return f"no results in {folder}"
    gpus = ", ".join(sorted({f"{line['gpu']}, torch {line['torch']}" for line in lines}))
    return f"{gpus}\n\n{goals_table(lines)}\n\n{rows_table(lines)}"


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    print(table(parser.parse_args().results))


if __name__ == "__main__":
    main()
