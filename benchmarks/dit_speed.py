"""Seconds and memory of a LoRA training step and of a forward, on random weights at the real sizes.

    python -m benchmarks.dit_speed RESULT_DIR                 # every row, on a GPU
    python -m benchmarks.dit_speed RESULT_DIR --only 0 3      # some of them
    python -m benchmarks.dit_speed RESULT_DIR --tiny          # on the CPU, to see that it runs

Each row is a step of the trainer's own parts (`training.estimating.trial`: model, LoRA r = 32 on every linear of the
blocks, bucket, AdamW) in a process of its own, batch 1; the median of some steps after two for warming up. The
machine's ceilings (bf16 product, attention) are measured in the same run. Every row appends a line to
RESULT_DIR/dit_speed.jsonl; the table is printed from that file.
"""

import argparse
from dataclasses import asdict, dataclass, replace
import json
from pathlib import Path
from statistics import median
import subprocess
import sys
import time
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One measurement."""

    name: str
    task: str
    grid: tuple[int, int, int]
    """Latent frames, latent height, latent width."""
    activations: str = "full"
    compiled: bool = True
    fp8: str = ""
    """Empty, `stores` or `computes`."""
    kind: str = "step"
    steps: int = 5


CLIP81, CLIP33, SQUARE25 = (21, 60, 104), (9, 60, 104), (7, 60, 60)
ROWS = (
    Row("14B 480x832x81: eager, all recomputed (plain path)", "t2v-14B", CLIP81, compiled=False, steps=2),
    Row("14B 480x832x81: compiled, all recomputed", "t2v-14B", CLIP81),
    Row("14B 480x832x81: compiled, attention kept", "t2v-14B", CLIP81, "attention"),
    Row("14B 480x832x81: compiled, fp8 products, attention kept", "t2v-14B", CLIP81, "attention", fp8="computes"),
    Row("14B 480x832x81: compiled, fp8 products, matmuls kept in 24 blocks", "t2v-14B", CLIP81,
        "matmuls:24,attention", fp8="computes"),
    Row("14B 480x832x81: compiled, fp8 products, all recomputed", "t2v-14B", CLIP81, fp8="computes"),
    Row("14B 480x480x25: compiled, nothing recomputed", "t2v-14B", SQUARE25, "none"),
    Row("14B 480x480x25: compiled, fp8 products, nothing recomputed", "t2v-14B", SQUARE25, "none", fp8="computes"),
    Row("1.3B 480x832x81: eager, all recomputed (plain path)", "t2v-1.3B", CLIP81, compiled=False, steps=3),
    Row("1.3B 480x832x81: compiled, nothing recomputed", "t2v-1.3B", CLIP81, "none"),
    Row("1.3B 480x832x81: compiled, attention kept", "t2v-1.3B", CLIP81, "attention"),
    Row("14B 480x832x81 forward: eager (plain path)", "t2v-14B", CLIP81, "none", compiled=False, kind="forward",
        steps=2),
    Row("14B 480x832x81 forward: compiled", "t2v-14B", CLIP81, "none", kind="forward", steps=4),
    Row("14B 480x832x81 forward: compiled, fp8 products", "t2v-14B", CLIP81, "none", fp8="computes", kind="forward",
        steps=4),
)
WARM_UPS = 2


def measure(row: Row, *, device: str, rank: int, attention: str) -> dict[str, Any]:
    """Run one row here."""
    import torch

    from common.features import FeatureBatch
    from training.estimating.trial import Recipe, StepInputs, Trial, empty_dit
    from wan.memory.fp8 import Fp8Settings
    from wan.variants import Variant

    where = torch.device(device)
    variant = Variant(in_channels=16, out_channels=16, **SIZES[row.task])
    fp8 = {"": None, "stores": Fp8Settings(), "computes": Fp8Settings(mode="tensor", computes=True)}[row.fp8]
    recipe = Recipe(variant=variant, dtype=torch.bfloat16, is_gpu=where.type == "cuda", fp8=fp8, attention=attention,
                    activations=row.activations, compiled=row.compiled, network_dim=rank, network_alpha=float(rank))
    started = time.perf_counter()
    trial = Trial(recipe, lambda shape, dtype: (torch.randn(shape, device=where, dtype=dtype) * 0.02),
                  dit=empty_dit(recipe), device=where)
    if row.kind == "forward":
        trial.network.detach()
    trial.make_optimizer()
    built = time.perf_counter() - started
    frames, height, width = row.grid
    text = torch.randn(1, 512, variant.text_dim, device=where, dtype=torch.bfloat16)
    latents = torch.randn(1, 16, frames, height, width, device=where)
    features = FeatureBatch(features={"text": {"hidden": [text[0]]}}, frames=4 * frames - 3, fps=16.0)
    inputs = StepInputs(latents, features)
    blocks = range(variant.layers)

    def step() -> None:
        if row.kind == "forward":
            trial.forward(inputs, blocks)
            return
        trial.bucket.clear()
        trial.forward_backward(inputs, blocks)
        trial.bucket.reduce(1.0)
        assert trial.optimizer is not None
        trial.optimizer.step()

    seconds = []
    for number in range(WARM_UPS + row.steps):
        if number == WARM_UPS and where.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _finish(where)
        started = time.perf_counter()
        step()
        _finish(where)
        seconds.append(time.perf_counter() - started)
    memory = {}
    if where.type == "cuda":
        memory = {"allocated_gib": torch.cuda.max_memory_allocated() / GIB,
                  "reserved_gib": torch.cuda.max_memory_reserved() / GIB}
    stats = torch._dynamo.utils.counters
    return {"row": asdict(row), "seconds": median(seconds[WARM_UPS:]), "first_s": seconds[0], "built_s": built,
            **memory, "graphs": stats["stats"].get("unique_graphs", 0),
            "graph_breaks": sum(stats["graph_break"].values())}


SIZES: dict[str, dict[str, int]] = {
    "t2v-14B": {"dim": 5120, "ffn_dim": 13824, "layers": 40, "heads": 40, "text_dim": 4096},
    "t2v-1.3B": {"dim": 1536, "ffn_dim": 8960, "layers": 30, "heads": 12, "text_dim": 4096},
    "tiny": {"dim": 64, "ffn_dim": 128, "layers": 4, "heads": 2, "text_dim": 16},
}


def _finish(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def ceilings(device: str) -> dict[str, float]:
    """TFLOP/s of a large bf16 product and of attention at the 14B model's shape, forward and backward."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    where = torch.device(device)
    size, tokens, heads = (8192, 32760, 40) if where.type == "cuda" else (256, 256, 2)
    dtype = torch.bfloat16
    a, b = (torch.randn(size, size, device=where, dtype=dtype) for _ in range(2))
    q, k, v = (torch.randn(1, tokens, heads, 128, device=where, dtype=dtype, requires_grad=True) for _ in range(3))

    def attention() -> Any:
        return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))

    work = 4 * tokens**2 * 128 * heads
    out = attention()
    gradient = torch.randn_like(out)
    return {"matmul": 2 * size**3 / _best(lambda: a @ b, where) / 1e12,
            "attention": work / _best(attention, where) / 1e12,
            "attention_backward": 2.5 * work / _best(
                lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True), where) / 1e12}


def _best(work: Any, where: Any) -> float:
    times = []
    for _ in range(8):
        _finish(where)
        started = time.perf_counter()
        work()
        _finish(where)
        times.append(time.perf_counter() - started)
    return median(sorted(times)[:5])


def table(path: Path) -> str:
    """Every line of the results as Markdown; the ratio is to the plain path of the same model, size and kind."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    plain = {(one["row"]["task"], tuple(one["row"]["grid"]), one["row"]["kind"]): one["seconds"] for one in lines
             if "row" in one and "seconds" in one and "plain" in one["row"]["name"]}
    rows = []
    for one in lines:
        if "ceilings" in one:
            found = ", ".join(f"{name} {value:.0f}" for name, value in one["ceilings"].items())
            rows.append(f"| ceilings, TFLOP/s: {found} | | | | |")
        elif "error" in one:
            rows.append(f"| {one['row']['name']} | {one['error'][:80]} | | | |")
        else:
            key = (one["row"]["task"], tuple(one["row"]["grid"]), one["row"]["kind"])
            ratio = f"{one['seconds'] / plain[key]:.3f}" if key in plain else ""
            memory = f"{one.get('allocated_gib', 0):.1f} / {one.get('reserved_gib', 0):.1f}"
            rows.append(f"| {one['row']['name']} | {one['seconds']:.3f} | {ratio} | {memory} | "
                        f"first {one['first_s']:.0f} s, graphs {one['graphs']}, breaks {one['graph_breaks']} |")
    head = "| row | s | of the plain path | GiB allocated / reserved | compiling |"
    return "\n".join([head, "|---|---|---|---|---|", *rows])


def main() -> int:
    """Measure what was asked for, a process a row, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of rows, from 0")
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--attention", default="sdpa", help="back end")
    parser.add_argument("--steps", type=int, help="measured steps, in place of each row's own number")
    parser.add_argument("--deadline", type=float, default=1e9, help="begin no row after so many seconds")
    parser.add_argument("--here", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    path = given.results / "dit_speed.jsonl"
    if given.here is not None:
        return _here(given, path)
    started = time.monotonic()
    for number in [-1, *(given.only if given.only is not None else range(len(ROWS)))]:
        if time.monotonic() - started > given.deadline:
            print(f"left out, because the time is over: row {number}")
            continue
        words = [sys.executable, "-m", "benchmarks.dit_speed", str(given.results), "--here", str(number), "--attention",
                 given.attention, *(["--tiny"] if given.tiny else []),
                 *(["--steps", str(given.steps)] if given.steps else [])]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            print((done.stdout + done.stderr)[-1500:])
            if number >= 0:
                _append(path, {"row": asdict(ROWS[number]), "error": done.stderr.strip().splitlines()[-1]})
        print(f"row {number}: {time.monotonic() - started:.0f} s", flush=True)
    print(table(path))
    return 0


def _here(given: argparse.Namespace, path: Path) -> int:
    device = "cpu" if given.tiny else "cuda"
    if given.here < 0:
        _append(path, {"ceilings": ceilings(device)})
        return 0
    row, rank = ROWS[given.here], 32
    row = replace(row, steps=given.steps or row.steps)
    if given.tiny:
        policy = row.activations if ":" not in row.activations else "matmuls:2,attention"
        row, rank = replace(row, task="tiny", grid=(3, 8, 12), activations=policy, steps=2), 4
    _append(path, measure(row, device=device, rank=rank, attention=given.attention))
    return 0


def _append(path: Path, values: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


if __name__ == "__main__":
    sys.exit(main())
