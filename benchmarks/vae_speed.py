"""The VAE at its real size with random weights: our plain path, then each way to make it faster, and whole caching.

    python -m benchmarks.vae_speed --out benchmarks/results [--parts ceilings,encode,decode,end]

Times are medians after warm-up of 81 frames of 480x832 (`--frames`, `--height`, `--width`). The plain path is one
latent frame a call, as the original does; its float32 rounds convolutions to TF32, torch's default. PSNR is against
float32 without TF32. End to end: clips from worker processes through the encoder into files; they are made on the fly
(`made`: no decoder is measured) or, where PyAV is there, decoded from mp4 by `precompute.run` (`mp4`). One table, and
JSON lines in ``OUT/speed.jsonl`` (`benchmarks.speed_table`). A row that fails is told and costs only itself.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import gc
import os
from pathlib import Path
import statistics
import sys
import tempfile
import time
import traceback
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.random_weights import random_tensor  # noqa: E402
from benchmarks.records import Records  # noqa: E402
from wan.memory.vae_speed import VaeSpeed, speed_up  # noqa: E402
from wan.modules.vae import Vae  # noqa: E402
from wan.modules.vae_coders import VaeShape  # noqa: E402

MFLOP = {"encode": 5.06, "decode": 8.51}
"""Million operations for each pixel of a video frame at the released sizes."""
GOALS = {"encode": 0.46, "decode": 0.86}
"""Seconds for 81 frames of 480x832 on one H200."""
PLENTY = 1 << 50
BF16, FP32 = torch.bfloat16, torch.float32


@dataclass(frozen=True)
class Way:
    """One way to run the VAE."""

    name: str
    dtype: torch.dtype
    speed: VaeSpeed | None = None
    """None: the plain path."""


def chunked(encode: int, decode: int, **more: Any) -> VaeSpeed:
    """Chunks of that many latent frames, whatever the memory."""
    return VaeSpeed(encode, decode, budget_bytes=PLENTY, **more)


WAYS = (
    Way("fp32 plain", FP32),
    Way("fp32 longer chunks", FP32, chunked(4, 5)),
    Way("fp32 longer chunks, channels last", FP32, chunked(4, 5, channels_last=True)),
    Way("bf16 plain", BF16),
    Way("bf16 longer chunks", BF16, chunked(4, 5)),
    Way("bf16 longer chunks, channels last", BF16, chunked(4, 5, channels_last=True)),
    Way("bf16 longer chunks, channels last, compiled", BF16, chunked(4, 5, channels_last=True, compiled=True)),
)


@dataclass
class Bench:
    """What all rows share."""

    device: str
    size: tuple[int, int, int]
    """Frames, height, width."""
    shape: VaeShape
    rounds: int
    records: Records | None
    rows: list[dict[str, Any]]

    def add(self, **row: Any) -> None:
        """Keep and show a row, and append it to the file."""
        self.rows.append(row)
        print("  " + ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                               for key, value in row.items()), flush=True)
        if self.records is not None:
            self.records.add("vae", **as_record(row, self.size), is_tiny=self.shape != VaeShape())

    def sync(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def timed(self, function: Callable[[], object], warm_up: int = 2) -> float:
        """Median seconds."""
        for _ in range(warm_up):
            function()
        times = []
        for _ in range(self.rounds):
            self.sync()
            started = time.perf_counter()
            function()
            self.sync()
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    def vae(self, way: Way) -> Vae:
        """A VAE with the same random weights each time, run this way."""
        torch.manual_seed(0)
        with torch.device("meta"):
            vae = Vae(self.shape)
        state = {name: random_tensor(name, tensor.shape, FP32, self.device) for name, tensor in
                 vae.state_dict().items()}
        vae.load_state_dict(state, assign=True)
        vae.requires_grad_(False).to(self.device, way.dtype)
        return vae if way.speed is None else speed_up(vae, way.speed)

    def video(self) -> Tensor:
        """A clip as levels on the device, as the caches hand it over."""
        frames, height, width = self.size
        generator = torch.Generator().manual_seed(1)
        small = torch.randint(0, 256, (1, 3, frames, height // 8, width // 8), generator=generator).float()
        large = torch.nn.functional.interpolate(small, size=(frames, height, width), mode="trilinear")
        return large.round().to(torch.uint8).to(self.device)


def as_record(row: dict[str, Any], size: tuple[int, int, int]) -> dict[str, Any]:
    """A row as the file of all results has it; one of 81 frames of 480x832 may fill a goal."""
    frames, height, width = size
    goals = {"encode": "VAE encode", "decode": "VAE decode", "end to end, mp4": "caching"}
    found = {"row": f"VAE {row['what']} {height}x{width}x{frames}: {row['way']}", **row}
    if size == (81, 480, 832):
        found["goal"] = goals.get(row["what"], "")
    found.pop("of_plain", None)  # of the same precision; the table's plain path is float32
    for old, new in (("s", "seconds"), ("failed", "error"), ("peak_gib", "allocated_gib"),
                     ("of_fp32_plain", "of_plain")):
        if old in found:
            found[new] = found.pop(old)
    return found


def machine(device: str) -> str:
    """The device's name."""
    return torch.cuda.get_device_name() if device != "cpu" else f"cpu, {torch.get_num_threads()} threads"


def psnr(found: Tensor, expected: Tensor) -> float:
    """Decibels, with the range of `expected` as peak."""
    error = (found - expected).double().square().mean().item()
    spread = (expected.max() - expected.min()).item()
    return 10 * torch.log10(torch.tensor(spread**2 / max(error, 1e-30))).item()


def ceilings(bench: Bench) -> None:
    """Rates of this machine in the same run: bf16 products, and the convolution that the VAE mostly is."""
    on_cpu = bench.device == "cpu"
    side = 256 if on_cpu else 8192
    a = torch.randn(side, side, device=bench.device, dtype=FP32 if on_cpu else BF16)
    bench.add(what="ceiling", way=f"matmul {side}", tflops=2 * side**3 / bench.timed(lambda: a @ a) / 1e12)
    frames, (_, height, width), channels = 16, bench.size, bench.shape.width
    conv = torch.nn.Conv3d(channels, channels, 3, padding=(0, 1, 1)).to(
        bench.device, a.dtype, memory_format=torch.channels_last_3d)
    x = torch.randn(1, channels, frames + 2, height, width, device=bench.device, dtype=a.dtype).to(
        memory_format=torch.channels_last_3d)
    with torch.no_grad():
        seconds = bench.timed(lambda: conv(x))
    bench.add(what="ceiling", way=f"conv3d {channels} channels last",
              tflops=2 * 27 * channels**2 * frames * height * width / seconds / 1e12)


@torch.no_grad()
def measure(bench: Bench, task: str, ways: Sequence[int] | None = None) -> None:
    """Every way to encode or decode, against the plain one."""
    video = bench.video()
    frames, height, width = bench.size
    torch.backends.cudnn.allow_tf32 = False
    exact_vae = bench.vae(Way("exact", FP32, chunked(4, 5)))
    latents = exact_vae.encode(video)
    exact = latents if task == "encode" else exact_vae.decode(latents).cpu()
    torch.backends.cudnn.allow_tf32 = True
    del exact_vae
    plain: dict[torch.dtype, float] = {}
    for way in WAYS if ways is None else [WAYS[number] for number in ways]:
        if bench.device == "cpu" and way.speed is not None and way.speed.compiled:
            continue
        gc.collect()
        if bench.device != "cpu":
            torch.cuda.empty_cache()
        try:
            vae = bench.vae(way)
            run = (lambda vae=vae: vae.encode(video)) if task == "encode" else (lambda vae=vae: vae.decode(latents))
            started = time.perf_counter()
            quality = psnr(run().to(exact.device), exact)
            bench.sync()
            first_s, held = time.perf_counter() - started, 0.0
            if bench.device != "cpu":
                torch.cuda.empty_cache()
                held = torch.cuda.memory_allocated() / 2**30
                torch.cuda.reset_peak_memory_stats()
            seconds = bench.timed(run, 1)
            if way.speed is None:
                plain[way.dtype] = seconds
            ratios = {name: seconds / plain[dtype] for name, dtype in (("of_fp32_plain", FP32), ("of_plain", way.dtype))
                      if dtype in plain}
            row = {"what": task, "way": way.name, "s": seconds, **ratios,
                   "tflops": MFLOP[task] * (bench.shape.width / 96)**2 * frames * height * width / seconds / 1e6,
                   "psnr_db": quality,
                   "first_call_s": first_s}
            if bench.device != "cpu":
                row |= {"peak_gib": torch.cuda.max_memory_allocated() / 2**30, "before_gib": held}
            if task == "decode":
                row["first_frame_s"] = first_frame(bench, vae, latents[0])
            bench.add(**row)
        except Exception as error:  # noqa: BLE001 - the other rows are wanted all the same
            traceback.print_exc()
            bench.add(what=task, way=way.name, failed=str(error).partition("\n")[0])


def first_frame(bench: Bench, vae: Vae, latents: Tensor) -> float:
    """Seconds from latents to the first frame on the CPU."""
    from inference.decoding import decoded_chunks

    times = []
    for _ in range(bench.rounds):
        bench.sync()
        started = time.perf_counter()
        next(iter(decoded_chunks(vae, latents)))
        times.append(time.perf_counter() - started)
        bench.sync()
    return statistics.median(times)


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of speed.jsonl")
    parser.add_argument("--parts", default="ceilings,encode,decode,end")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=30, help="that count in the end-to-end rows")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--ways", type=int, nargs="+", help="only these ways, from 0")
    parser.add_argument("--commit", help="of what is measured, where the tree came without its history")
    parser.add_argument("--tiny", action="store_true", help="a narrow VAE on small clips: does it run?")
    given = parser.parse_args()
    size = (9, 32, 48) if given.tiny else (given.frames, given.height, given.width)
    bench = Bench("cuda" if torch.cuda.is_available() else "cpu", size,
                  VaeShape(width=8) if given.tiny else VaeShape(), given.rounds,
                  None if given.out is None else Records(given.out, commit=given.commit), [])
    if bench.records is not None and "ceilings" in given.parts.split(","):
        bench.records.measure_ceilings(bench.device)
    print(f"{machine(bench.device)}, torch {torch.__version__}, {size[0]} frames of {size[1]}x{size[2]}", flush=True)
    for part in given.parts.split(","):
        print(part, flush=True)
        try:
            if part == "ceilings":
                ceilings(bench)
            elif part == "end":
                from benchmarks.caching_rate import end_to_end

                with tempfile.TemporaryDirectory() as folder:
                    end_to_end(bench, Path(folder), clips=6 if given.tiny else given.clips, workers=given.workers)
            else:
                measure(bench, part, given.ways)
        except Exception:  # noqa: BLE001 - the other parts are wanted all the same
            traceback.print_exc()
    table(bench)


def table(bench: Bench) -> None:
    """All rows, and the goals."""
    columns = ("s", "of_fp32_plain", "of_plain", "tflops", "psnr_db", "peak_gib", "first_frame_s", "first_call_s",
               "clips_s", "of_vae", "failed")
    print(f"\n| what | way | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for row in bench.rows:
        cells = [f"{row[name]:.4g}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in columns]
        print(f"| {row['what']} | {row['way']} | {' | '.join(cells)} |")
    for task, goal in GOALS.items():
        best = min((row["s"] for row in bench.rows if row["what"] == task and "s" in row), default=None)
        if best is not None and bench.size == (81, 480, 832):
            print(f"{task}: {best:.3f} s (goal {goal}): {'met' if best <= goal else 'missed'}")


if __name__ == "__main__":
    main()
