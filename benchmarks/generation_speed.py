"""Generation on random weights of the real size: forward, guided step, few-step clip with decode, step caches; plain,
then (part `fast`) with fp8 products, compiled blocks, each --attention, and the fast VAE.

    python -m benchmarks.generation_speed RESULTS_FOLDER                 14B text to video, 480x832, 81 frames, one GPU
    python -m benchmarks.generation_speed RESULTS_FOLDER --parts fast    the rows of the table of goals alone
    python -m benchmarks.generation_speed RESULTS_FOLDER --tiny          seconds on a CPU; its times mean nothing

Weights are made on the device. Beside the rows stand the ceilings of the same run: a bf16 product of 8192^3 and
attention at the model's shape. Ratios are against the plain forward of this run. A row that fails says why and
stops no other. Appends a JSON line a row to RESULTS_FOLDER/speed.jsonl and prints a Markdown table. Needs
torch, einops, jaxtyping, safetensors and tqdm.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
import sys
import time
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from benchmarks.records import Records  # noqa: E402
from benchmarks.step_profile import profile_steps  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.timebase import latent_frame_count  # noqa: E402
from inference.decoding import decoded_chunks  # noqa: E402
from inference.denoise import Sampling, denoise  # noqa: E402
from inference.first_block import FirstBlock  # noqa: E402
from inference.guidance import ClassifierFree, Pass  # noqa: E402
from inference.magcache import MagCache  # noqa: E402
from inference.step_cache import Rule, StepCache, run_with_cache  # noqa: E402
from inference.teacache import COEFFICIENTS, TeaCache  # noqa: E402
from wan.memory.blocks import run_blocks  # noqa: E402
from wan.memory.fp8 import Fp8Linear, Fp8Settings  # noqa: E402
from wan.memory.fp8_model import use_fp8_linears  # noqa: E402
from wan.memory.vae_speed import VaeSpeed, speed_up  # noqa: E402
from wan.modules.constants import Constants  # noqa: E402
from wan.modules.dit import WanDiT  # noqa: E402
from wan.modules.vae import Vae  # noqa: E402
from wan.modules.vae_coders import VaeShape  # noqa: E402
from wan.variants import Variant  # noqa: E402

VARIANTS = {
    "t2v-14B": {"dim": 5120, "ffn_dim": 13824, "layers": 40, "heads": 40, "text_dim": 4096},
    "t2v-1.3B": {"dim": 1536, "ffn_dim": 8960, "layers": 30, "heads": 12, "text_dim": 4096},
    "tiny": {"dim": 64, "ffn_dim": 96, "layers": 4, "heads": 2, "text_dim": 32},
}
RANK = 32
TIMES = (1000.0, 750.0, 500.0, 250.0)
SIGMAS = (1.0, 0.8, 0.6, 0.4)
"""Of the cache rows: step 1 and 2 may be skipped."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    seconds: float | None
    ratio: float | None = None
    """To the plain forward of the same run."""
    peak_gib: float | None = None
    note: str = ""
    goal: str = ""
    """Line of the table of goals that the row may fill."""


class Bench:
    """Device, sizes, models and the plain forward's time."""

    def __init__(self, model: str, size: tuple[int, int], frames: int, repeats: int) -> None:
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if self.device == "cuda" else torch.float32
        self.repeats = repeats
        self.variant = Variant(in_channels=16, out_channels=16, **VARIANTS[model])  # type: ignore[arg-type]
        self.dit = random_model(lambda: WanDiT(self.variant), self.device, self.dtype)
        shape_of_vae = VaeShape(width=8 if model == "tiny" else 96)
        self.vae = random_model(lambda: Vae(shape_of_vae), self.device, self.dtype)
        shape = (1, 16, latent_frame_count(frames), size[0] // 8, size[1] // 8)
        self.noise = torch.randn(shape, device=self.device)
        self.text = {name: [torch.randn(100, self.variant.text_dim, device=self.device, dtype=self.dtype)]
                     for name in ("conditional", "unconditional")}
        self.tokens = shape[2] * shape[3] * shape[4] // 4
        self.plain: float | None = None
        self.plain_clip: float | None = None
        self.attentions = ["sdpa"]
        self.profiles: Path | None = None
        """Where a page for each forward of `fast` goes that says what its time went to; None: no such pages."""

    def velocity(self, cache: StepCache | None = None) -> Callable[[Tensor, float, float, Pass], Tensor]:
        """The model's velocity as a generation calls it."""
        constants = {name: Constants() for name in self.text}

        def call(x: Tensor, sigma: float, timestep: float, one: Pass) -> Tensor:
            when = torch.full((1,), timestep, device=x.device)
            return run_with_cache(self.dit, cache, one.name, sigma, x, when, self.text[one.name],
                                  constants=constants[one.name])

        return call

    def timed(self, work: Callable[[], Any], repeats: int | None = None) -> tuple[float, float | None]:
        """(median seconds after one warm-up, peak GiB)."""
        work()
        on_gpu = self.device == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(repeats or self.repeats):
            self._finish()
            started = time.perf_counter()
            work()
            self._finish()
            seconds.append(time.perf_counter() - started)
        return median(seconds), torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None

    def _finish(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def row(self, name: str, work: Callable[[], Any], note: str = "", repeats: int | None = None) -> Row:
        """Time `work`; its ratio is to the plain forward."""
        seconds, peak = self.timed(work, repeats)
        return Row(name, seconds, None if self.plain is None else seconds / self.plain, peak, note)


def random_model(build: Callable[[], torch.nn.Module], device: str, dtype: torch.dtype) -> Any:
    """A model, made on the device alone, with gains of one, no biases, and weights that keep values near one."""
    with torch.device("meta"):
        model = build().to(dtype)
    assert not list(model.buffers()), "a buffer would be left without values"
    model = model.to_empty(device=device).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif name.endswith("gamma") or ("norm" in name and parameter.ndim == 1):
            parameter.fill_(1)
        else:
            fan_in = parameter.shape[1:].numel() if parameter.ndim > 1 else 1
            parameter.normal_(std=0.02 if "modulation" in name else min(0.7 * fan_in**-0.5, 0.02))
    return model


def ceilings(bench: Bench) -> Iterator[Callable[[], Row]]:
    """What the machine gives: a large product, and attention at the model's shape."""
    side = 8192 if bench.device == "cuda" else 512
    heads, tokens = bench.variant.heads, bench.tokens

    def matmul() -> Row:
        a, b = (torch.randn(side, side, device=bench.device, dtype=bench.dtype) for _ in range(2))
        seconds, _ = bench.timed(lambda: a @ b, 20)
        return Row(f"ceiling: product {side}^3", seconds, note=f"{2 * side**3 / seconds / 1e12:.1f} TFLOP/s")

    def attention() -> Row:
        q = torch.randn(1, tokens, heads, bench.variant.head_dim, device=bench.device, dtype=bench.dtype)
        q = q.transpose(1, 2)  # as the model lays it out

        seconds, _ = bench.timed(lambda: F.scaled_dot_product_attention(q, q, q), 10)
        rate = 4 * tokens**2 * heads * bench.variant.head_dim / seconds / 1e12
        return Row(f"ceiling: attention {heads} x {tokens}", seconds, note=f"{rate:.1f} TFLOP/s, torch's choice")

    yield from (matmul, attention)


def forwards(bench: Bench) -> Iterator[Callable[[], Row]]:
    """The model alone."""
    time_of = torch.full((1,), 500.0, device=bench.device)
    text = bench.text["conditional"]

    def plain() -> Row:
        constants = Constants()
        bench.plain, peak = bench.timed(lambda: bench.dit(bench.noise, time_of, text, constants=constants))
        return Row("forward, LoRA merged", bench.plain, 1.0, peak)

    def without_constants() -> Row:
        return bench.row("forward, text and positions embedded anew", lambda: bench.dit(bench.noise, time_of, text))

    def attached() -> Row:
        from networks.lora_wan import create_network

        network = create_network(bench.dit, dim=RANK, alpha=RANK)
        network.requires_grad_(False).eval().to(bench.device).attach()
        try:
            return bench.row(f"forward, LoRA r={RANK} attached",
                             lambda: bench.dit(bench.noise, time_of, text))
        finally:
            network.detach()

    yield from (plain, without_constants, attached)


def decode(vae: Vae, latents: Tensor) -> None:
    """Frames to the host, as a generation gets them; there they are let go."""
    for _ in decoded_chunks(vae, latents[0]):
        pass


def generations(bench: Bench) -> Iterator[Callable[[], Row]]:
    """A guided step, and a whole clip in four steps."""
    def guided() -> Row:
        velocity = bench.velocity()
        return bench.row("one step, two passes (CFG)", lambda: denoise(
            velocity, bench.noise, Sampling("euler", 1, 5.0), guidance=ClassifierFree(5.0)))

    def decoding() -> Row:
        return bench.row("decode, frames to the host", lambda: decode(bench.vae, bench.noise))

    def clip() -> Row:
        velocity, sampling = bench.velocity(), Sampling("euler", len(TIMES), 5.0, TIMES)
        row = bench.row("clip, 4 steps, one pass, with decode", lambda: decode(bench.vae, denoise(
            velocity, bench.noise, sampling, guidance=ClassifierFree(1.0))), repeats=min(bench.repeats, 2))
        bench.plain_clip = row.seconds
        return row

    yield from (guided, decoding, clip)


def fast(bench: Bench) -> Iterator[Callable[[], Row]]:
    """Forward and clip with all that makes them fast. The plain model is gone behind it."""
    make_fast(bench)
    text, time_of = bench.text["conditional"], torch.full((1,), 500.0, device=bench.device)
    constants = Constants()

    def forward(attention: str) -> Row:
        bench.dit.set_attention(attention)
        name = f"forward, LoRA merged: fp8 products, compiled, {attention}"

        def work() -> Tensor:
            return bench.dit(bench.noise, time_of, text, constants=constants)

        row = bench.row(name, work)
        if bench.profiles is not None:
            profile_steps(work, bench.profiles, name)
        return replace(row, goal="forward 8-bit" if "fp8" in attention else "forward")

    def clip(attention: str) -> Row:
        velocity, sampling = bench.velocity(), Sampling("euler", len(TIMES), 5.0, TIMES)

        def made() -> None:
            decode(bench.vae, denoise(velocity, bench.noise, sampling, guidance=ClassifierFree(1.0)))

        row = bench.row(f"clip, 4 steps, one pass, with decode: fp8 products, compiled, {attention}", made)
        plain = bench.plain_clip
        return replace(row, goal="clip", ratio=None if plain is None or row.seconds is None else row.seconds / plain,
                       note="ratio to the plain clip")

    for attention in bench.attentions:
        for work in (forward, clip):
            yield partial(work, attention)


def make_fast(bench: Bench) -> None:
    """fp8 products from the weights that are there, compiled blocks and VAE, channels innermost in the VAE."""
    on_gpu, dit = bench.device == "cuda", bench.dit
    old = {f"blocks.{name}": (module.weight, module.bias) for name, module in dit.blocks.named_modules()
           if isinstance(module, nn.Linear)}
    for name in use_fp8_linears(dit, Fp8Settings(mode="tensor", computes=on_gpu)):
        linear, (weight, bias) = dit.get_submodule(name), old.pop(name)
        assert isinstance(linear, Fp8Linear)
        linear.store(weight.detach())
        linear.bias = bias
    dit.requires_grad_(False)
    run_blocks(dit, ["none"] * len(dit.blocks), compiled=True, backend="inductor" if on_gpu else "aot_eager")
    bench.vae = speed_up(bench.vae, VaeSpeed(channels_last=on_gpu, fused=on_gpu, tuned=on_gpu))


def cached_steps(bench: Bench) -> Iterator[Callable[[], Row]]:
    """What a step costs under each cache: computed (the rule never skips) and skipped (it always does)."""
    kinds: dict[str, Callable[[float], Rule]] = {
        "TeaCache": lambda threshold: TeaCache(threshold, COEFFICIENTS["Wan2.1-T2V-14B"]),
        "MagCache": lambda threshold: MagCache(threshold, (1.0,) * len(SIGMAS), 100, 0.0),
        "first block": lambda threshold: FirstBlock(threshold)}

    def step(kind: str, threshold: float, name: str) -> Row:
        cache = StepCache(kind, lambda _: kinds[kind](threshold), SIGMAS)
        velocity, one = bench.velocity(cache), Pass("conditional")
        velocity(bench.noise, SIGMAS[0], 1000 * SIGMAS[0], one)  # computed: the first
        row = bench.row(f"step, {kind}: {name}", lambda: velocity(bench.noise, SIGMAS[1], 1000 * SIGMAS[1], one))
        skipped = cache.skipped > 0
        assert skipped == (name == "skipped"), f"{cache.skipped} of {cache.calls} were skipped"
        return row

    for kind in kinds:
        yield lambda kind=kind: step(kind, -1e9, "computed")  # type: ignore[misc]
        yield lambda kind=kind: step(kind, 1e9, "skipped")  # type: ignore[misc]


def table(rows: list[Row], head: str) -> str:
    """The rows as Markdown."""
    def cell(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    lines = [head, "", "| what | seconds | of the plain forward | peak GiB | |", "|---|---|---|---|---|"]
    lines += [f"| {row.name} | {cell(row.seconds, '.4f')} | {cell(row.ratio, '.3f')} | {cell(row.peak_gib, '.1f')} | "
              f"{row.note} |" for row in rows]
    return "\n".join(lines)


PARTS = {"ceilings": ceilings, "forwards": forwards, "generations": generations, "caches": cached_steps, "fast": fast}


@torch.no_grad()
def main() -> None:
    """Measure, append, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--model", choices=list(VARIANTS), default="t2v-14B")
    parser.add_argument("--video_size", type=int, nargs=2, default=(480, 832), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of a row; their median counts")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--attention", nargs="+", default=["fa4", "cudnn_fp8", "sdpa"], help="back ends of `fast`")
    parser.add_argument("--profile", action="store_true", help="a page for each forward of `fast`, on a GPU")
    parser.add_argument("--commit", help="of what is measured, where the tree came without its history")
    parser.add_argument("--tiny", action="store_true", help="a tiny model at 32x48 and 5 frames: whether it runs")
    asked = parser.parse_args()
    if asked.tiny:
        asked.model, asked.video_size, asked.frames, asked.repeats = "tiny", (32, 48), 5, 1
    torch.manual_seed(0)
    bench = Bench(asked.model, tuple(asked.video_size), asked.frames, asked.repeats)
    bench.attentions = ["sdpa"] if bench.device == "cpu" else asked.attention
    bench.profiles = asked.results if asked.profile and bench.device == "cuda" else None
    records = Records(asked.results, commit=asked.commit)
    records.measure_ceilings(bench.device)
    size = f"{asked.model} {asked.video_size[0]}x{asked.video_size[1]}x{asked.frames}"
    rows: list[Row] = []
    for part in asked.parts:
        for work in PARTS[part](bench):
            try:
                row = work()
            except (RuntimeError, ValueError, TypeError, AssertionError, ImportError, OSError, UserError) as error:
                row = Row(f"{part}: {name_of(work)}", None, note=f"{type(error).__name__}: {str(error)[:160]}")
            rows.append(row)
            print(table(rows[-1:], "").splitlines()[-1], flush=True)
            records.add("generation", row=f"{size}: {row.name}", is_tiny=asked.tiny, goal=row.goal, note=row.note,
                        **({"error": row.note} if row.seconds is None else {"seconds": row.seconds}),
                        **({"of_plain": row.ratio} if row.ratio is not None and row.goal else {}),
                        **({} if row.peak_gib is None else {"allocated_gib": row.peak_gib}))
    facts = records.facts
    print("\n" + table(rows, f"{facts['gpu']}, torch {facts['torch']}, {size}, random weights, commit "
                             f"{facts['commit']}"))


def name_of(work: Callable[[], Row]) -> str:
    """What a row that failed is called."""
    if isinstance(work, partial):
        return " ".join([work.func.__name__, *map(str, work.args)])
    return getattr(work, "__name__", "row")


if __name__ == "__main__":
    main()
