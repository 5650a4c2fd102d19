"""Norms, rotation and scaling to eight bits by themselves: our kernels beside the same compiled by torch.

    python -m benchmarks.rows_speed RESULTS            # at the models' shapes, on a GPU; over 45 s on an H200
    python -m benchmarks.rows_speed RESULTS --tiny     # on the CPU, where torch runs both as written: does it run?

Shapes: tokens of 480x832x81 and 480x480x25 at the widths of 14B and 1.3B, and of their feed-forward parts. Passes that
compiled blocks join stand beside the same apart (GELU as torch compiles it). Times are of the device, ROUNDS calls in a
row; beside them what a call costs the host, timed on FEW rows. GB/s counts what must be read and written once; beside
it stands what copying such a tensor reached in the same run. Appends a line a row to RESULTS/speed.jsonl and prints a
Markdown table.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
import sys
import time
from typing import Any

from benchmarks.attention_speed import timed
from benchmarks.records import Records, finish

SHAPES = ((32760, 5120), (6300, 5120), (32760, 1536))
WIDE = {5120: 13824, 1536: 8960}
"""Width of the model → of its feed-forward part."""
TINY = ((24, 512),)
FEW, CALLS = 32, 200
HEAD = 128
EPS = 1e-6


@dataclass(frozen=True)
class Pass:
    """One operation: ours, and as torch compiles it from what is written out."""

    name: str
    ours: Callable[[], Any]
    plain: Callable[[], Any]
    nbytes: int
    """That must be read and written."""


def passes(rows: int, width: int, where: Any) -> list[Pass]:
    """Every operation at one shape."""
    import torch
    from torch.nn import functional as F  # noqa: N812

    from wan.memory import fp8_rows
    from wan.memory.fp8_rows import E4M3, LARGEST, SMALLEST_SCALE, quantise_rows
    from wan.modules import rows as ops
    from wan.modules.block import gelu_by_sigmoid
    from wan.modules.rope import grid_positions, rope_table, rotate

    torch.manual_seed(0)
    x, slope = (torch.randn(rows, width, device=where, dtype=torch.bfloat16) for _ in range(2))
    weight, shift = (torch.randn(1, width, device=where) for _ in range(2))
    rope = rope_table(grid_positions((1, rows, 1), torch.device(where)), HEAD)
    wide = torch.randn(rows, WIDE.get(width, 2 * width), device=where, dtype=torch.bfloat16)

    def normed(tokens: Any) -> Any:
        return (F.layer_norm(tokens.float(), (width,), eps=EPS) * weight + shift).to(tokens.dtype)

    def turned(tokens: Any) -> Any:
        result = F.rms_norm(tokens.float(), (width,), weight[0], EPS).to(tokens.dtype)
        return rotate(result.view(1, rows, -1, HEAD), rope)

    def quantised(tokens: Any) -> Any:
        scale = (tokens.abs().amax(dim=-1, keepdim=True).float() / LARGEST).clamp(min=SMALLEST_SCALE)
        return (tokens.float() / scale).clamp(-LARGEST, LARGEST).to(E4M3), scale

    def backward_of(work: Callable[[Any], Any]) -> Callable[[], Any]:
        tokens = x.clone().requires_grad_()
        made = cache(lambda: compiled(work, where)(tokens))
        return lambda: torch.autograd.grad(made(), tokens, slope.view_as(made()), retain_graph=True)

    modulated, active = (x, weight, shift, EPS), compiled(gelu_by_sigmoid, where)
    _, means, deviations = ops.layer_norm_rows(x, weight, shift, EPS)
    _, lengths = ops.rms_norm_rows(x, weight[0], EPS, *rope)
    one = x.nbytes
    return [
        Pass("layer norm, modulated", lambda: ops.layer_norm_rows(*modulated),
             partial(compiled(normed, where), x), 2 * one),
        Pass("its gradient", lambda: ops.layer_norm_rows_backward(slope, x, weight, means, deviations),
             backward_of(normed), 3 * one),
        Pass("RMS norm, rotated", lambda: ops.rms_norm_rows(x, weight[0], EPS, *rope),
             partial(compiled(turned, where), x), 2 * one),
        Pass("its gradient", lambda: ops.rms_norm_rows_backward(slope, x, weight[0], lengths, *rope),
             backward_of(turned), 3 * one),
        Pass("to eight bits", partial(quantise_rows, x), partial(compiled(quantised, where), x), one * 3 // 2),
        Pass("to eight bits, feed-forward", partial(quantise_rows, wide), partial(compiled(quantised, where), wide),
             wide.nbytes * 3 // 2),
        Pass("layer norm to eight bits; apart", partial(fp8_rows.norm_to_eight_bits, *modulated, None),
             lambda: quantise_rows(ops.layer_norm_rows(*modulated)[0]), one * 3 // 2),
        Pass("layer norm and eight bits; apart", partial(fp8_rows.norm_and_eight_bits, *modulated, None),
             lambda: quantise_rows(ops.layer_norm_rows(*modulated)[0]), one * 5 // 2),
        Pass("GELU to eight bits; apart", partial(fp8_rows.gelu_to_eight_bits, wide, None),
             lambda: quantise_rows(active(wide)), wide.nbytes * 3 // 2),
        Pass("a copy", x.clone, x.clone, 2 * one),
    ]


def compiled(work: Callable[[Any], Any], where: Any) -> Callable[[Any], Any]:
    """By inductor, forward and backward, on a GPU; as it is elsewhere."""
    import torch

    return torch.compile(work, dynamic=False) if where.type == "cuda" else work


def run(records: Records, *, is_tiny: bool) -> list[dict[str, Any]]:
    """Every pass at every shape."""
    import torch
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False  # gradients are taken again and again
    where, lines = torch.device("cpu" if is_tiny else "cuda:0"), []
    for rows, width in TINY if is_tiny else SHAPES:
        for one, short in zip(passes(rows, width, where), passes(FEW, width, where), strict=True):
            seconds = timed(one.ours, where)
            lines.append(records.add("rows", row=f"{one.name}: {rows} x {width}", is_tiny=is_tiny, seconds=seconds,
                                     plain_s=timed(one.plain, where), gb_per_s=one.nbytes / seconds / 1e9,
                                     host_us=host_time(short.ours, where) * 1e6))
        torch._dynamo.reset()
    return lines


def host_time(work: Callable[[], Any], where: Any) -> float:
    """Seconds that the host needs to queue one call."""
    for _ in range(3):
        work()
    finish(where)
    started = time.perf_counter()
    for _ in range(CALLS):
        work()
    seconds = (time.perf_counter() - started) / CALLS
    finish(where)
    return seconds


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as Markdown."""
    rows = ["| pass | ours, ms (GB/s) | compiled by torch, ms | ratio | host, us a call |", "|---|---|---|---|---|"]
    rows += [f"| {one['row']} | {1e3 * one['seconds']:.3f} ({one['gb_per_s']:.0f}) | {1e3 * one['plain_s']:.3f} | "
             f"{one['seconds'] / one['plain_s']:.2f} | {one['host_us']:.0f} |" for one in lines]
    return "\n".join(rows)


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a small shape on the CPU")
    parser.add_argument("--commit", help="of what is measured, where the tree came without its history")
    given = parser.parse_args()
    print(table(run(Records(given.results, commit=given.commit), is_tiny=given.tiny)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
