"""The VAE at its real size with random weights: ways to run it beside our plain path, and whole caching.

    python -m benchmarks.vae_speed --out RESULTS --parts encode,decode --only "fused, tuned" "compiled, tuned"
    python -m benchmarks.vae_speed --out RESULTS --parts ceilings,end [--profile]

Times are medians after warm-up of 81 frames of 480x832 (`--frames`, `--height`, `--width`). The plain path is one
latent frame a call, as the original does; its float32 rounds convolutions to TF32, torch's default. PSNR is against
float32 without TF32. Rows that matter most come first; `--only` keeps those that have one of its texts in their name,
and after `--limit` seconds no further row begins. torch keeps one plan for each form of a convolution, whether cuDNN
tried its kernels for it or guessed; so tuned rows come first, and an untuned one of the same forms needs a process of
its own (`--only untuned`). On an H200 a half-precision row takes about 5 s (compiled: a minute
more at first), a float32 row 12 s, the reference for PSNR 4 s each, `--profile` 2 s a row, `convolutions` 20 s.

``convolutions``  each form of the VAE's convolutions by itself, and other ways to compute it.
``end``           mp4 files through `precompute.run` into cache files, against the encoder's own rate (45 s; with PyAV).
``bytes``         what is read and written beside the products, counted on any machine (`benchmarks.vae_bytes`).
``made``          the same without files: clips that are made in the worker processes.

One table, and JSON lines in ``OUT/speed.jsonl`` (`benchmarks.speed_table`). A row that fails is told and costs only
itself.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
import gc
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

from benchmarks.records import Records  # noqa: E402
from benchmarks.vae_bytes import bytes_moved  # noqa: E402
from benchmarks.vae_profile import TOP, convolutions, profile  # noqa: E402
from precompute.loading import usual_workers  # noqa: E402
from training.estimating.random_weights import random_weight  # noqa: E402
from wan.memory.vae_speed import VaeSpeed, kernels_tried, speed_up  # noqa: E402
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
    Way("bf16 fused, tuned", BF16, chunked(4, 5, fused=True, tuned=True)),
    Way("bf16 compiled, tuned", BF16, chunked(4, 5, channels_last=True, compiled=True, tuned=True)),
    Way("fp32 plain", FP32),
    Way("bf16 plain", BF16),
    Way("bf16 fused in short calls, tuned", BF16, chunked(2, 2, fused=True, tuned=True)),
    Way("fp32 fused, tuned", FP32, chunked(4, 5, fused=True, tuned=True)),
    Way("bf16 fused, untuned", BF16, chunked(4, 5, fused=True)),
    Way("bf16 compiled, untuned", BF16, chunked(4, 5, channels_last=True, compiled=True)),
    Way("bf16 longer chunks, channels last, untuned", BF16, chunked(4, 5, channels_last=True)),
    Way("fp32 fused, untuned", FP32, chunked(4, 5, fused=True)),
    Way("fp32 longer chunks, channels last, untuned", FP32, chunked(4, 5, channels_last=True)),
    Way("bf16 longer chunks", BF16, chunked(4, 5)),
    Way("fp32 longer chunks", FP32, chunked(4, 5)),
)
"""Tuned before untuned: what was tried stays for the process, and so does what was guessed. The plain path and longer
chunks have forms of their own: channels outermost."""


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
    only: tuple[str, ...] = ()
    """Texts of which a row has one in its name; none: all rows."""
    stop: float = float("inf")
    """When, by `time.monotonic`, no further row begins."""
    profiled: bool = False
    latents: Tensor | None = None
    """Of the clip, in float32 without TF32."""
    tuned: set[torch.dtype] = field(default_factory=set)
    """Precisions for which cuDNN tried its kernels in this process."""

    def add(self, **row: Any) -> None:
        """Keep and show a row, and append it to the file."""
        self.rows.append(row)
        print("  " + ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                               for key, value in row.items()), flush=True)
        self.record(row)

    def record(self, row: dict[str, Any]) -> None:
        """Append a row to the file."""
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
        state = {name: random_weight(name, tensor.shape, FP32, self.device) for name, tensor in
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
    # 15 frames are a form that no row has, so that its plan is not theirs.
    frames, (_, height, width), channels = 15, bench.size, bench.shape.width
    conv = torch.nn.Conv3d(channels, channels, 3, padding=(0, 1, 1)).to(
        bench.device, a.dtype, memory_format=torch.channels_last_3d)
    x = torch.randn(1, channels, frames + 2, height, width, device=bench.device, dtype=a.dtype).to(
        memory_format=torch.channels_last_3d)
    with torch.no_grad(), kernels_tried():
        seconds = bench.timed(lambda: conv(x))
    bench.add(what="ceiling", way=f"conv3d {channels} channels last, tuned",
              tflops=2 * 27 * channels**2 * frames * height * width / seconds / 1e12)


def exact(bench: Bench, task: str, video: Tensor) -> Tensor:
    """What float32 without TF32 gives: latents on the device, or frames on the CPU."""
    allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        vae = bench.vae(Way("exact", FP32, chunked(4, 5)))
        if bench.latents is None:
            bench.latents = vae.encode(video)
        return bench.latents if task == "encode" else vae.decode(bench.latents).cpu()
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


@torch.no_grad()
def measure(bench: Bench, task: str) -> None:
    """Every way to encode or decode that is asked for."""
    video = bench.video()
    expected = exact(bench, task, video)
    for way in WAYS:
        speed = way.speed or VaeSpeed()
        if (bench.device == "cpu" and speed.compiled) or (bench.only and not any(text in way.name
                                                                                 for text in bench.only)):
            continue
        reason = "not begun: --limit" if time.monotonic() > bench.stop else ""
        if (speed.fused or speed.channels_last) and not speed.tuned and way.dtype in bench.tuned:
            reason = "not begun: cuDNN tried its kernels in this process; --only untuned"
        if reason:
            print(f"  {task}, {way.name}: {reason}", flush=True)
            continue
        if speed.tuned and bench.device != "cpu":
            bench.tuned.add(way.dtype)
        clean(bench)
        try:
            one_way(bench, task, way, video, expected)
        except Exception as error:  # noqa: BLE001 - the other rows are wanted all the same
            traceback.print_exc()
            bench.add(what=task, way=way.name, failed=str(error).partition("\n")[0])
    compare(bench, task)


def compare(bench: Bench, task: str) -> None:
    """Give rows their ratios to the plain paths that were measured, which may have come after them."""
    plain = {row["way"]: row["s"] for row in bench.rows if row["what"] == task and "s" in row}
    for row in (row for row in bench.rows if row["what"] == task and "s" in row):
        names = {"of_fp32_plain": "fp32 plain", "of_plain": f"{row['way'][:4]} plain"}
        row |= {ratio: row["s"] / plain[name] for ratio, name in names.items() if name in plain}
        if "of_fp32_plain" in row:
            bench.record(row)  # of lines of one name the last one counts


def one_way(bench: Bench, task: str, way: Way, video: Tensor, expected: Tensor) -> None:
    """One row, and its profile."""
    frames, height, width = bench.size
    begun, vae, latents = time.perf_counter(), bench.vae(way), bench.latents
    assert latents is not None

    def run() -> Tensor:
        return vae.encode(video) if task == "encode" else vae.decode(latents)

    started, held = time.perf_counter(), 0.0
    result = run()
    bench.sync()
    first_s = time.perf_counter() - started
    quality = psnr(result.to(expected.device), expected)
    del result
    clean(bench)
    if bench.device != "cpu":
        held = torch.cuda.memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.timed(run, 1)
    row: dict[str, Any] = {
        "what": task, "way": way.name, "s": seconds, "psnr_db": quality, "first_call_s": first_s,
        "tflops": MFLOP[task] * (bench.shape.width / 96)**2 * frames * height * width / seconds / 1e6}
    if bench.device != "cpu":
        row |= {"peak_gib": torch.cuda.max_memory_allocated() / 2**30, "before_gib": held}
    if task == "decode":
        row["first_frame_s"] = first_frame(bench, vae, latents[0])
    bench.add(**row, row_s=time.perf_counter() - begun)
    if bench.profiled:
        profile(bench, f"{task}, {way.name}", run)


def clean(bench: Bench) -> None:
    """Give back what earlier rows held."""
    gc.collect()
    if bench.device != "cpu":
        torch.cuda.empty_cache()


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
    parser.add_argument("--parts", default="ceilings,encode,decode,end", help="these, made, bytes and convolutions")
    parser.add_argument("--only", nargs="+", default=[], help="rows with one of these texts in their name")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which no row begins")
    parser.add_argument("--profile", action="store_true", help=f"the {TOP} longest kernels of each row")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=24, help="that count in the end-to-end rows")
    parser.add_argument("--workers", type=int, default=usual_workers("cuda") or 1)
    parser.add_argument("--commit", help="of what is measured, where the tree came without its history")
    parser.add_argument("--tiny", action="store_true", help="a narrow VAE on small clips: does it run?")
    given = parser.parse_args()
    size = (9, 32, 48) if given.tiny else (given.frames, given.height, given.width)
    bench = Bench("cuda" if torch.cuda.is_available() else "cpu", size,
                  VaeShape(width=8) if given.tiny else VaeShape(), given.rounds,
                  None if given.out is None else Records(given.out, commit=given.commit), [], tuple(given.only),
                  time.monotonic() + given.limit, given.profile)
    if bench.records is not None and "ceilings" in given.parts.split(","):
        bench.records.measure_ceilings(bench.device)
    print(f"{machine(bench.device)}, torch {torch.__version__}, {size[0]} frames of {size[1]}x{size[2]}", flush=True)
    for part in given.parts.split(","):
        print(part, flush=True)
        try:
            if time.monotonic() > bench.stop:
                print(f"  {part}: not begun: --limit")
            elif part == "ceilings":
                ceilings(bench)
            elif part == "bytes":
                bytes_moved(bench)
            elif part == "convolutions":
                convolutions(bench)
            elif part in ("end", "made"):
                from benchmarks.caching_rate import end_to_end

                with tempfile.TemporaryDirectory() as folder:
                    end_to_end(bench, Path(folder), clips=6 if given.tiny else given.clips, workers=given.workers,
                               made=part == "made")
            else:
                measure(bench, part)
        except Exception:  # noqa: BLE001 - the other parts are wanted all the same
            traceback.print_exc()
    table(bench)


def table(bench: Bench) -> None:
    """All rows, and the goals."""
    columns = ("s", "of_fp32_plain", "of_plain", "tflops", "psnr_db", "peak_gib", "first_frame_s", "first_call_s",
               "clips_s", "of_vae", "workers_frames_s", "of_products", "ms", "failed")
    print(f"\n| what | way | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for row in (row for row in bench.rows if row["what"] != "profile"):
        cells = [f"{row[name]:.4g}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in columns]
        print(f"| {row['what']} | {row['way']} | {' | '.join(cells)} |")
    for task, goal in GOALS.items():
        best = min((row["s"] for row in bench.rows if row["what"] == task and "s" in row), default=None)
        if best is not None and bench.size == (81, 480, 832):
            print(f"{task}: {best:.3f} s (goal {goal}): {'met' if best <= goal else 'missed'}")


if __name__ == "__main__":
    main()
