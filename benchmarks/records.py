"""The one file of results, RESULTS/speed.jsonl: every benchmark appends lines, `benchmarks.speed_table` prints them.

A line says when, on what, at which commit and, where they were measured, the ceilings of its own process.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
import json
from pathlib import Path
from statistics import median
import subprocess
import time
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILE = "speed.jsonl"
GIB = 2**30


class Records:
    """Appends lines to the file of a folder."""

    def __init__(self, folder: Path, *, commit: str | None = None) -> None:
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        has_gpu = torch.cuda.is_available()
        self.facts: dict[str, Any] = {"commit": commit or commit_here(), "torch": torch.__version__,
                                      "gpu": torch.cuda.get_device_name() if has_gpu else "CPU"}
        self.ceilings: dict[str, float] = {}
        """TFLOP/s, once `measure_ceilings` was called."""

    def measure_ceilings(self, device: str) -> None:
        """What the machine gives just now; they stand in every later line."""
        import torch

        with torch.enable_grad():
            self.ceilings = ceilings(device)

    def add(self, part: str, **values: Any) -> dict[str, Any]:
        """One line. `part` names the benchmark; a row has `row` and `seconds`, or `row` and `error`."""
        line = {"part": part, "date": datetime.now(UTC).isoformat(timespec="seconds"), **self.facts,
                **({"ceilings": self.ceilings} if self.ceilings else {}), **values}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return line


def lines_of(folder: Path) -> Iterator[dict[str, Any]]:
    """All lines of a folder in the order in which they were written; none where there is no file."""
    path = folder / FILE
    if path.exists():
        yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def commit_here() -> str:
    """The commit that is checked out, or `unknown` where the tree came without its history."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def ceilings(device: str) -> dict[str, float]:
    """TFLOP/s of a large bf16 product and of attention at the 14B model's shape, forward and backward."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    where = torch.device(device)
    size, tokens, heads = (8192, 32760, 40) if where.type == "cuda" else (256, 256, 2)
    kind: dict[str, Any] = {"device": where, "dtype": torch.bfloat16}
    a, b = (torch.randn(size, size, **kind) for _ in range(2))
    q, k, v = (torch.randn(1, tokens, heads, 128, requires_grad=True, **kind) for _ in range(3))

    def attention() -> Any:
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))

    work = 4 * tokens**2 * 128 * heads
    out = attention()
    gradient = torch.randn_like(out)
    return {"matmul": 2 * size**3 / seconds_of(lambda: a @ b, where) / 1e12,
            "attention": work / seconds_of(attention, where) / 1e12,
            "attention_backward": 2.5 * work / seconds_of(
                lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True), where) / 1e12}


def seconds_of(work: Any, where: Any) -> float:
    """Median of the five fastest of eight calls."""
    times = []
    for _ in range(8):
        finish(where)
        started = time.perf_counter()
        work()
        finish(where)
        times.append(time.perf_counter() - started)
    return median(sorted(times)[:5])


def finish(device: Any) -> None:
    """Wait for a GPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
