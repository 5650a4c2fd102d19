"""Attention back ends by themselves: milliseconds and TFLOP/s, forward and backward, and how far off they are.

    python -m benchmarks.attention_speed RESULTS                          # what is installed, at the models' shapes
    python -m benchmarks.attention_speed RESULTS --backends cudnn fa4     # some; 15 s each on an H200
    python -m benchmarks.attention_speed RESULTS --tiny                   # on the CPU, to see that it runs

Shapes: self-attention of 14B (40 heads) and 1.3B (12) at 480x832x81 and 480x480x25, and attention to 512 text tokens,
that one also with its queries cut into parts that run beside each other (`split`), which gives a small attention's
backward pass more to do at once. Times are of the device, ROUNDS calls in a row. Off: share of the norm of exact
attention (float64) on 2048 tokens of 4 heads. Appends a line a row to RESULTS/speed.jsonl and prints a Markdown table.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
import sys
import time
from typing import Any

from benchmarks.records import Records, finish

SHAPES = ((40, 32760, 32760, 1), (40, 6300, 6300, 1), (12, 32760, 32760, 1), (40, 32760, 512, 1), (40, 32760, 512, 4),
          (40, 32760, 512, 8), (40, 6300, 512, 1), (40, 6300, 512, 4), (12, 32760, 512, 1), (12, 32760, 512, 14),
          (40, 32760, 257, 1), (40, 32760, 257, 6))
"""Heads, queries, keys, parts of the queries."""
TINY = ((2, 64, 64, 1), (2, 64, 16, 4))
ROUNDS = 10
HEAD = 128


def attend_in_parts(q: Any, k: Any, v: Any, parts: int, backend: str) -> Any:
    """Attention with the queries of a sample in `parts` beside each other, each with all keys."""
    from wan.modules.attention import attend, in_parts

    return in_parts(partial(attend, backend=backend), q, k, v, parts)


def measure(backend: str, shape: tuple[int, int, int, int], where: Any, *, trains: bool) -> dict[str, Any]:
    """Milliseconds and TFLOP/s of one shape."""
    import torch

    heads, queries, keys, parts = shape
    q, k, v = (torch.randn(1, count, heads, HEAD, device=where, dtype=torch.bfloat16, requires_grad=trains)
               for count in (queries, keys, keys))
    work = 4 * queries * keys * HEAD * heads / 1e12

    def forward() -> Any:
        return attend_in_parts(q, k, v, parts, backend)

    out = forward()
    seconds = timed(forward, where)
    found = {"forward_ms": 1e3 * seconds, "forward_tflops": work / seconds}
    if trains:
        gradient = torch.randn_like(out)
        seconds = timed(lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True), where)
        found |= {"backward_ms": 1e3 * seconds, "backward_tflops": 2.5 * work / seconds}
    return found


def timed(work: Callable[[], Any], where: Any) -> float:
    """Seconds a call, of the device where it is a GPU."""
    import torch

    for _ in range(2):
        work()
    finish(where)
    if where.type != "cuda":
        started = time.perf_counter()
        for _ in range(ROUNDS):
            work()
        return (time.perf_counter() - started) / ROUNDS
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(ROUNDS):
        work()
    end.record()
    finish(where)
    return begin.elapsed_time(end) / 1e3 / ROUNDS


def off(backend: str, where: Any, tokens: int, *, trains: bool) -> dict[str, float]:
    """Errors of the output and, in training, of the worst gradient."""
    import torch

    from wan.modules.attention import FEW_KEYS, attend

    torch.manual_seed(0)
    count = max(tokens, FEW_KEYS) if where.type == "cuda" else tokens
    drawn = [torch.randn(1, count, 4, HEAD, device=where, dtype=torch.bfloat16) for _ in range(4)]

    def run(name: str, given: list[Any]) -> list[Any]:
        q, k, v = (one.detach().requires_grad_(trains) for one in given[:3])
        out = attend(q, k, v, backend=name)
        return [out.detach(), *(torch.autograd.grad(out, (q, k, v), given[3]) if trains else ())]

    right = run("math", [one.float() for one in drawn])
    errors = [float((one.float() - exact).norm() / exact.norm())
              for one, exact in zip(run(backend, drawn), right, strict=True)]
    return {"off": errors[0], **({"gradient_off": max(errors[1:])} if trains else {})}


def run(backends: list[str], records: Records, *, is_tiny: bool) -> list[dict[str, Any]]:
    """Every back end at every shape; one that fails says why."""
    import torch

    from wan.modules.attention_names import ONLY_FORWARD

    where = torch.device("cpu" if is_tiny else "cuda:0")
    lines = []
    for name in backends:
        trains = name not in ONLY_FORWARD
        try:
            errors = off(name, where, 64 if is_tiny else 2048, trains=trains)
            for shape in TINY if is_tiny else SHAPES:
                values = measure(name, shape, where, trains=trains)
                row = f"attention {name}: {shape[0]} x {shape[1]} x {shape[2]}" + (
                    f", queries in {shape[3]} parts" if shape[3] > 1 else "")
                lines.append(records.add("attention", row=row, backend=name, shape=shape, is_tiny=is_tiny,
                                         seconds=values["forward_ms"] / 1e3, **errors, **values))
        except Exception as error:  # noqa: BLE001 - the other back ends are wanted all the same
            lines.append(records.add("attention", row=f"attention {name}", backend=name,
                                     error=f"{type(error).__name__}: {str(error).strip()[:300]}"))
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    rows = ["| row | forward, ms (TFLOP/s) | backward, ms (TFLOP/s) | off: output, gradients |", "|---|---|---|---|"]
    for one in lines:
        if "error" in one:
            rows.append(f"| {one['row']} | failed: {one['error'][:100]} | | |")
            continue
        backward = f"{one['backward_ms']:.3f} ({one['backward_tflops']:.0f})" if "backward_ms" in one else ""
        gradients = f", {one['gradient_off']:.1e}" if "gradient_off" in one else ""
        rows.append(f"| {one['row']} | {one['forward_ms']:.3f} ({one['forward_tflops']:.0f}) | {backward} | "
                    f"{one['off']:.1e}{gradients} |")
    return "\n".join(rows)


def main() -> int:
    """Measure what was asked for and print the table."""
    from wan.modules.attention import BACKENDS, check_backend

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--backends", nargs="+", help="back ends by name (default: all that are installed)")
    parser.add_argument("--tiny", action="store_true", help="small shapes on the CPU")
    parser.add_argument("--commit", help="of what is measured, where the tree came without its history")
    given = parser.parse_args()
    names = given.backends or (["sdpa", "math"] if given.tiny else [])
    for name in BACKENDS if not names else ():
        try:
            check_backend(name)
        except Exception as error:  # noqa: BLE001 - not installed
            print(f"{name}: {error}")
        else:
            names += [name] if name != "math" else []  # it would hold all scores at once
    records = Records(given.results, commit=given.commit)
    records.measure_ceilings("cpu" if given.tiny else "cuda")
    print(table(run(names, records, is_tiny=given.tiny)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
