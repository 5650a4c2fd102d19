"""What planner and preflight say of the measured training rows, beside their peaks. Needs no GPU; ten seconds a row.

    python -m benchmarks.estimates RESULTS

Reads the settings of the rows in RESULTS/speed.jsonl and appends a line for each that has none yet. The planner is what
`--memory auto` reckons with (`planned` of `training.estimating.memory_choice`), the preflight what `--dry_run` tells
(`estimate_memory`). `benchmarks.speed_table` prints both with their deviations.
"""

import argparse
from dataclasses import replace
import json
from pathlib import Path
from typing import Any

from benchmarks.dit_rows import GIB, SIZES
from benchmarks.dit_speed import random_inputs
from benchmarks.records import Records, lines_of
from benchmarks.speed_table import Line, key_of, latest


def estimates_of(line: Line) -> dict[str, float]:
    """GiB that torch will count as allocated at the peak of the row's step."""
    import torch

    from training.estimating.memory_choice import planned, static_bytes
    from training.estimating.memory_estimate import estimate_memory
    from training.estimating.trial import Recipe
    from wan.memory.estimate import Holding
    from wan.memory.fp8 import Fp8Settings
    from wan.memory.planner import Step
    from wan.memory.policies import parse_policies
    from wan.variants import Variant

    asked, settings = line["asked"], line["settings"]
    variant = Variant(out_channels=16, **SIZES[asked["task"]])
    fp8 = {"": None, "stores": Fp8Settings(), "computes": Fp8Settings(mode="tensor", computes=True)}[asked["fp8"]]
    policies, offloads = parse_policies(settings["activations"], variant.layers), settings["offloads"]
    recipe = Recipe(variant=variant, dtype=torch.bfloat16, is_gpu=True, fp8=fp8,
                    activations="full" if offloads else settings["activations"],
                    compiled=asked["compiled"], swapped=settings["swapped"], offloads=offloads,
                    offloaded_attention=policies.count("attention") if offloads else 0,
                    network_dim=settings["rank"], network_alpha=float(settings["rank"]))
    inputs = random_inputs(variant, tuple(asked["grid"]), torch.device("cpu"))
    plain = replace(recipe, activations="full", compiled=False, swapped=0, offloads=False,
                    offloaded_attention=0)
    static = static_bytes(estimate_memory(plain, inputs))
    frames, height, width = asked["grid"]
    step = Step(variant, frames * height * width // 4, asked["compiled"])
    holding = Holding(recipe.dtype, fp8, swapped=recipe.swapped, offloads=offloads,
                      attention=recipe.offloaded_attention)
    planner = planned(step, static, holding, policies)
    return {"planner_gib": planner / GIB, "preflight_gib": estimate_memory(recipe, inputs).allocated / GIB}


def pending(folder: Path) -> list[Line]:
    """Training rows without estimates."""
    lines: list[dict[str, Any]] = list(lines_of(folder))
    there = {line["of"] for line in lines if "estimates" in line}
    rows = {key_of(line): line for line in latest(lines) if line.get("asked", {}).get("kind") == "step"
            and "seconds" in line}
    return [line for key, line in rows.items() if key and key not in there]


def main() -> None:
    """Estimate what is missing."""
    from benchmarks.speed_table import table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    given = parser.parse_args()
    records = Records(given.results)
    for line in pending(given.results):
        found = estimates_of(line)
        records.add("estimates", of=key_of(line), estimates=found)
        print(f"{line['row']}: {json.dumps({name: round(value, 2) for name, value in found.items()})}", flush=True)
    print(table(given.results))


if __name__ == "__main__":
    main()
