"""A LoRA step of a random 14B on a small card: blocks swapped, inputs offloaded, memory limited to such a card's.

    python -m benchmarks.small_card RESULTS_DIR

Each row builds the DiT on the device (float8 or bfloat16 weights of the real sizes, random), moves blocks out, limits
the process's memory where the row says so, and times forward, backward and AdamW (rank 32 on every linear of the
blocks, full checkpointing, batch 1), median of --steps after the first (of one less at 81 frames). Ratios are to the
row of the same clip with float8 and nothing swapped. The rows `check` compare gradients with and without swapping on
the device itself. Rows that fail are told and the rest goes on; rows that would pass --seconds are left out. A JSON
line a row goes to RESULTS_DIR/speed.jsonl. What `--memory auto` makes of such a card is measured by the rows "24 GB"
of `benchmarks.dit_speed`.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
import sys
import time
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
import torch.nn.functional as F  # noqa: E402, N812

from benchmarks.random_weights import SIZES  # noqa: E402
from benchmarks.records import Records  # noqa: E402
from networks.lora_wan import create_network  # noqa: E402
from wan.memory.estimate import Holding, memory_need  # noqa: E402
from wan.memory.fp8 import Fp8Linear, Fp8Settings  # noqa: E402
from wan.memory.fp8_model import use_fp8_linears  # noqa: E402
from wan.memory.offload import ActivationOffload  # noqa: E402
from wan.memory.recompute import recompute_blocks  # noqa: E402
from wan.memory.swap import BlockSwap  # noqa: E402
from wan.memory.transfers import transfers_for  # noqa: E402
from wan.modules.dit import WanDiT  # noqa: E402
from wan.variants import Variant  # noqa: E402

RANK = 32
CARD = 24e9
"""Bytes: 22.35 GiB, less than a card of 24 GiB leaves to a process."""
GIB = 2**30
LONG = 21
"""Latent frames of the clips whose steps take so long that one fewer is timed."""


@dataclass(frozen=True)
class Row:
    """One setting."""

    frames: int
    """Latent: 21 are 81 video frames, 9 are 33."""
    swapped: int = 0
    offloads: bool = False
    fp8: bool = True
    is_limited: bool = False

    @property
    def name(self) -> str:
        """In words."""
        parts = [f"x{4 * (self.frames - 1) + 1}", "fp8" if self.fp8 else "bf16", f"swap {self.swapped}"]
        return ", ".join(parts + ["offload"] * self.offloads + ["24 GB"] * self.is_limited)


ROWS = (
    Row(21), Row(21, 32, True, is_limited=True), Row(21, 28, True, is_limited=True),
    Row(9), Row(9, 20, False, is_limited=True), Row(9, 24, True, is_limited=True), Row(9, 40, True, is_limited=True),
    Row(21, 40, True, is_limited=True), Row(21, fp8=False),
)
TINY_ROWS = (Row(3), Row(3, 2, True), Row(3, 4, True), Row(3, fp8=False))


@dataclass(frozen=True)
class Setting:
    """What all rows share."""

    variant: Variant
    size: tuple[int, int]
    """Height and width in pixels."""
    device: torch.device
    dtype: torch.dtype
    steps: int


@torch.no_grad()
def build(setting: Setting, row: Row) -> WanDiT:
    """A random frozen DiT on the device, tensor after tensor."""
    with torch.device("meta"):
        dit = WanDiT(setting.variant)
    if row.fp8:
        use_fp8_linears(dit)
    draws = torch.Generator(setting.device).manual_seed(0)
    for path, module in dit.named_modules():
        for name, empty in [*module.named_parameters(recurse=False)]:
            value = random_tensor(f"{path}.{name}", empty.shape, setting, draws)
            if isinstance(module, Fp8Linear) and name == "weight":
                module.store(value)
            else:
                setattr(module, name, torch.nn.Parameter(value, requires_grad=False))
    return dit.eval().requires_grad_(False)


def random_tensor(name: str, shape: torch.Size, setting: Setting, draws: torch.Generator) -> Tensor:
    """As `benchmarks.random_weights` has them: gains one, biases zero, the rest small and normal."""
    kind: dict[str, Any] = {"device": setting.device, "dtype": setting.dtype}
    if name.endswith("bias"):
        return torch.zeros(shape, **kind)
    if "norm" in name and len(shape) == 1:
        return torch.ones(shape, **kind)
    fan_in = shape[1:].numel() if len(shape) > 1 else 1
    return torch.randn(shape, generator=draws, **kind).mul_(min(0.7 * fan_in ** -0.5, 0.02))


def measure(setting: Setting, row: Row) -> dict[str, Any]:
    """Seconds a step, peaks in GiB and what arithmetic says."""
    tokens = row.frames * (setting.size[0] // 16) * (setting.size[1] // 16)
    started = time.perf_counter()
    dit = build(setting, row)
    if row.swapped:
        BlockSwap(dit, row.swapped)
    if row.offloads:
        ActivationOffload(dit)
    else:
        recompute_blocks(dit)
    network = create_network(dit, dim=RANK, alpha=RANK)
    network.to(setting.device).attach().train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    built = time.perf_counter() - started
    limit(setting.device, CARD if row.is_limited else None)
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=setting.device.type == "cuda")
    times, losses = [], []
    for number in range(1 + (setting.steps if row.frames < LONG else max(setting.steps - 1, 1))):
        finish(setting.device)
        started = time.perf_counter()
        loss = loss_of(dit, inputs(setting, row.frames, number))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        finish(setting.device)
        times.append(time.perf_counter() - started)
        losses.append(loss.item())
        del loss
    assert all(map(lambda one: one == one, losses)), f"the losses are no numbers: {losses}"
    need = memory_need(setting.variant, Holding(
        setting.dtype, Fp8Settings() if row.fp8 else None, swapped=row.swapped, offloads=row.offloads), tokens)
    return {"row": row.name, **asdict(row), "tokens": tokens, "seconds": median(times[1:]), "first": times[0],
            "built": built, **peaks(setting.device), "base_gib": need.device / GIB, "host_gib": need.host / GIB,
            "trained_gib": sum(one.numel() for one in trained) * 16 / GIB}


def loss_of(dit: WanDiT, given: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Flow-matching loss of one clip."""
    latents, target, timestep, text = given
    return F.mse_loss(dit(latents, timestep, [text]), target)


def inputs(setting: Setting, frames: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noisy latents, target, time, and 100 text tokens."""
    draws = torch.Generator(setting.device).manual_seed(seed)
    shape = (1, 16, frames, setting.size[0] // 8, setting.size[1] // 8)
    latents, target = (torch.randn(shape, generator=draws, device=setting.device) for _ in range(2))
    text = torch.randn(100, setting.variant.text_dim, generator=draws, device=setting.device)
    return latents, target, torch.full((1,), 700.0, device=setting.device), text


def check(setting: Setting, layers: int = 6) -> Iterator[dict[str, Any]]:
    """Gradients of a few blocks of the real width: swapped and offloaded against neither, with exact kernels."""
    few = Setting(Variant(**{**vars(setting.variant), "layers": layers}), (128, 128), setting.device, setting.dtype, 1)
    expected: list[Tensor] = []
    for fp8 in (False, True):
        expected = []
        for swapped, ring, offloads in ((0, 2, False), (0, 2, False), (layers, 1, False), (layers, 2, True),
                                        (layers // 2, 2, True), (layers, 3, False)):
            dit = build(few, Row(3, fp8=fp8))
            dit.set_attention("math")
            if swapped:
                BlockSwap(dit, swapped, ring=ring)
            if offloads:
                ActivationOffload(dit)
            else:
                recompute_blocks(dit)
            found = gradients(few, dit)
            expected = expected or found
            worst = max(((a - b).abs().max() / b.abs().max().clamp(min=1e-30)).item()
                        for a, b in zip(found, expected, strict=True))
            yield {"row": f"check, {'fp8' if fp8 else 'bf16'}, swap {swapped} of {layers}, ring {ring}"
                          f"{', offload' if offloads else ''}", "worst_relative_difference": worst}


def gradients(setting: Setting, dit: WanDiT) -> list[Tensor]:
    """LoRA gradients of three steps without an update, as they follow each other in training."""
    network = create_network(dit, dim=RANK, alpha=RANK).to(setting.device).attach().train()
    draws = torch.Generator(setting.device).manual_seed(1)
    for parameter in network.parameters():
        parameter.data.normal_(std=0.02, generator=draws)
    found = []
    for number in range(3):
        loss_of(dit, inputs(setting, 3, number)).backward()
        found += [one.grad.clone() for one in network.parameters() if one.grad is not None]
        network.zero_grad()
    return found


def ceilings(setting: Setting) -> dict[str, Any]:
    """What the machine can: copies from and to page-locked memory, bfloat16 products, attention's forward pass."""
    found: dict[str, Any] = {"row": "ceilings"}
    transfers, count = transfers_for(setting.device), 352 * 10**6 if setting.device.type == "cuda" else 10**6
    host, there = transfers.host(count), torch.empty(count, dtype=torch.uint8, device=setting.device)
    found["h2d_gb_s"] = count / timed(setting, lambda: transfers.wait(transfers.copy(there, host, None))) / 1e9
    found["d2h_gb_s"] = count / timed(setting, lambda: transfers.wait(transfers.copy(host, there, None))) / 1e9
    wide, rows = setting.variant.dim, 32760 if setting.device.type == "cuda" else 256
    x, w = (torch.randn(n, wide, device=setting.device, dtype=setting.dtype) for n in (rows, wide))
    found["matmul_tflops"] = 2 * rows * wide * wide / timed(setting, lambda: x @ w.T) / 1e12
    q = torch.randn(1, setting.variant.heads, rows, wide // setting.variant.heads, device=setting.device,
                    dtype=setting.dtype)
    found["attention_tflops"] = 4 * rows * rows * wide / timed(
        setting, lambda: F.scaled_dot_product_attention(q, q, q)) / 1e12
    return found


def timed(setting: Setting, work: Callable[[], Any]) -> float:
    """Median seconds of five calls after two."""
    times = []
    for _ in range(7):
        finish(setting.device)
        started = time.perf_counter()
        work()
        finish(setting.device)
        times.append(time.perf_counter() - started)
    return median(times[2:])


def limit(device: torch.device, nbytes: float | None) -> None:
    """Let the process use so much of the device (None: all), and count peaks from here on."""
    free()
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(nbytes / total, 1.0) if nbytes else 1.0, device)
        torch.cuda.reset_peak_memory_stats(device)


def peaks(device: torch.device) -> dict[str, float]:
    """Allocated and reserved, GiB; nothing on the CPU, which does not count."""
    if device.type != "cuda":
        return {}
    return {"allocated_gib": torch.cuda.max_memory_allocated(device) / GIB,
            "reserved_gib": torch.cuda.max_memory_reserved(device) / GIB}


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free() -> None:
    """Give back what nothing refers to."""
    from common.devices import free_memory

    free_memory()


def attempt(name: str, work: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of `work`; one that tells the error where it fails."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - one row must not cost the others
        return [{"row": name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}]


def line_of(found: dict[str, Any], plain: dict[int, float]) -> str:
    """A line of the table."""
    if "error" in found:
        return f"| {found['row']} | failed: {found['error']} | | | | |"
    if "seconds" not in found:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in found.items() if name != "row")
        return f"| {found['row']} | {figures} | | | | |"
    peak = f"{found['allocated_gib']:.2f} / {found['reserved_gib']:.2f}" if "allocated_gib" in found else "-"
    ratio = f"{found['seconds'] / plain[found['frames']]:.3f}" if found["frames"] in plain else "-"
    return (f"| {found['row']} | {found['seconds']:.3f} | {ratio} | {peak} | "
            f"{found['base_gib']:.2f} + {found['trained_gib']:.2f} | {found['host_gib']:.2f} |")


def main() -> None:
    """Measure the rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, to see that it runs")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a row, after one that does not count")
    parser.add_argument("--seconds", type=float, default=270.0, help="no row is begun that would end behind this")
    parser.add_argument("--rows", type=int, nargs="+", help="numbers of the rows to measure, from 0 (default: all)")
    parser.add_argument("--without_check", action="store_true")
    parser.add_argument("--commit", help="of what is measured, where the tree came without its history")
    arguments = parser.parse_args()
    began = time.perf_counter()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    sizes = {**SIZES["tiny"], "text_dim": 64} if arguments.tiny else SIZES["t2v-14B"]
    setting = Setting(Variant(**sizes), (64, 64) if arguments.tiny else (480, 832), device,
                      torch.bfloat16 if device.type == "cuda" else torch.float32, arguments.steps)
    rows = TINY_ROWS if arguments.tiny else ROWS
    rows = tuple(rows[number] for number in arguments.rows) if arguments.rows else rows
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, LoRA rank {RANK}\n\n"
          "| what | s a step | ratio | peak allocated / reserved, GiB | arithmetic: base + trained, GiB | host, GiB |\n"
          "|---|---|---|---|---|---|", flush=True)
    records = Records(arguments.results, commit=arguments.commit)
    plain: dict[int, float] = {}
    longest: dict[int, float] = {}

    def tell(found: list[dict[str, Any]]) -> None:
        for one in found:
            print(line_of(one, plain), flush=True)
            records.add("small card", is_tiny=arguments.tiny, **one)

    tell(attempt("ceilings", lambda: [ceilings(setting)]))
    if not arguments.without_check:
        tell(attempt("check", lambda: list(check(setting, 4 if arguments.tiny else 6))))
    for row in rows:
        started = time.perf_counter()
        if started - began + longest.get(row.frames, 0.0) > arguments.seconds:
            print(f"| {row.name} | left out: --seconds | | | | |", flush=True)
            continue
        limit(device, None)
        found = attempt(row.name, lambda row=row: [measure(setting, row)])  # type: ignore[misc]
        if "seconds" in found[0] and not row.swapped and row.fp8:
            plain[row.frames] = found[0]["seconds"]
        longest[row.frames] = max(longest.get(row.frames, 0.0), time.perf_counter() - started)
        tell(found)


if __name__ == "__main__":
    main()
