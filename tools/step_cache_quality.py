"""Measure what step caches save and what they cost in quality, beside the same video without one; prints a table.

    python tools/step_cache_quality.py                                  the shipped tiny weights, text to video
    python tools/step_cache_quality.py --steps 50 -- --dit … --vae … --t5 … --prompt … --video_size 480 832
    python tools/step_cache_quality.py --out table.md --seeds 3 -- --image_path … --audio … --lora_weight … …

Behind `--` stand the flags of generate_video.py. Each row is a mean over the seeds: block passes that were not run;
sampling time by that of the same seed without a cache (on a CPU the process's own time, which other work on the machine
does not stretch); PSNR of the decoded 8-bit frames against that video, and the lowest of any seed; where a sound drives
the video, the correlation of mouth and sound. The rows "fewer steps" say what a saving costs without a cache. MagCache
is calibrated on a seed of its own where no ratios are published. Quality belongs to the weights that were measured, and
to nothing else.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
import sys
import tempfile
import time
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from common.atomic import write_text  # noqa: E402
from common.config import parse  # noqa: E402
from common.errors import run  # noqa: E402
from inference.foreign import FOREIGN  # noqa: E402
from inference.request import GenerationRequest  # noqa: E402

TINY = ROOT / "examples" / "tiny-weights"
TINY_FLAGS = ("--dit", str(TINY / "wan2.1_t2v_tiny.safetensors"), "--vae", str(TINY / "Wan2.1_VAE.pth"),
              "--t5", str(TINY / "models_t5_umt5-xxl-enc-bf16.pth"), "--prompt", "a person speaks",
              "--video_size", "128", "128", "--video_length", "33")
THRESHOLDS: dict[str, tuple[float, ...]] = {
    "teacache": (0.05, 0.1, 0.2), "magcache": (0.06, 0.12, 0.24), "first_block": (0.05, 0.1, 0.2)}
FEWER = (0.75, 0.5)
"""Shares of the steps, for comparison."""
CALIBRATION_SEED = 10_000


@dataclass(frozen=True)
class Made:
    """One video and what it took."""

    frames: Any
    """uint8 `F H W 3`."""
    seconds: float
    """Of sampling."""
    block_runs: int
    sync: float | None


@contextmanager
def counted_blocks(dit: Any) -> Iterator[list[int]]:
    """Counts how often any block of the DiT runs, as its first and only entry."""
    runs = [0]

    def note(*inputs: Any) -> None:
        runs[0] += 1

    hooks = [block.register_forward_hook(note) for block in dit.blocks]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()


def make(pipeline: Any, request: GenerationRequest) -> Made:
    """Generate without writing, and measure."""
    prepared = pipeline.prepare(pipeline.plan(request))
    clock = time.process_time if pipeline.models.device == "cpu" else time.perf_counter
    with counted_blocks(pipeline.models.get("dit")) as runs:
        started = clock()
        latents = pipeline.sample(prepared)
        seconds = clock() - started
    result = pipeline.finish(prepared, latents)
    return Made(result.frames, seconds, runs[0], _sync(result))


def _sync(result: Any) -> float | None:
    """r of mouth and sound; frame 0 is given and counts like the others."""
    if result.sound is None:
        return None
    from common.media.sound import mono16k
    from common.timebase import AUDIO_SAMPLE_RATE_HZ
    from evaluation.sync import measure_sync

    return measure_sync(result.frames, mono16k(result.sound), sample_rate=AUDIO_SAMPLE_RATE_HZ, fps=result.fps).r


def psnr(frames: Any, reference: Any) -> float:
    """Decibels over all pixels of 8-bit frames; infinite where they are equal."""
    import numpy as np

    error = float(np.mean((frames.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def row(name: str, made: Sequence[Made], plain: Sequence[Made]) -> str:
    """A line of the table; `made` and `plain` by seed."""
    saved = 1 - mean(one.block_runs / other.block_runs for one, other in zip(made, plain, strict=True))
    seconds = mean(one.seconds / other.seconds for one, other in zip(made, plain, strict=True))
    decibels = [psnr(one.frames, other.frames) for one, other in zip(made, plain, strict=True)]
    synced = [one.sync for one in made if one.sync is not None]
    sync = f"{mean(synced):.3f}" if synced else "–"
    return (f"| {name} | {100 * saved:.0f} % | {seconds:.2f} | {mean(decibels):.1f} ({min(decibels):.1f}) | {sync} |")


def rows(request: GenerationRequest, seeds: Sequence[int], kinds: Sequence[str], thresholds: Sequence[float]
         ) -> Iterator[str]:
    """All lines of the table, each as soon as it is known."""
    from inference import load_pipeline

    pipeline = load_pipeline(request)

    def several(**settings: Any) -> list[Made]:
        return [make(pipeline, request.model_copy(update={"seed": seed, **settings})) for seed in seeds]

    steps = pipeline.plan(request).sampling.steps
    make(pipeline, request.model_copy(update={"seed": seeds[0], "infer_steps": 2}))  # warm-up
    plain = several()
    yield row(f"none, {steps} steps", plain, plain)
    for share in FEWER:
        yield row(f"fewer steps: {round(share * steps)}", several(infer_steps=round(share * steps)), plain)
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            ratios = calibrated(pipeline, request, Path(folder) / "ratios.json") if kind == "magcache" else None
            for threshold in thresholds or THRESHOLDS[kind]:
                made = several(step_cache=kind, step_cache_threshold=threshold, step_cache_ratios=ratios)
                yield row(f"{kind} {threshold:g}", made, plain)


def calibrated(pipeline: Any, request: GenerationRequest, path: Path) -> Path | None:
    """Ratios of this model, measured on a seed of their own; None where published ones are used or a file is given."""
    from inference.magcache import published_ratios

    plan = pipeline.plan(request)
    if request.step_cache_ratios is not None or published_ratios(plan.variant, plan.size) is not None:
        return request.step_cache_ratios
    pipeline.sample(pipeline.prepare(pipeline.plan(request.model_copy(
        update={"seed": CALIBRATION_SEED, "step_cache_calibrate": path}))))
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(THRESHOLDS), default=list(THRESHOLDS))
    parser.add_argument("--thresholds", nargs="+", type=float, default=[], help="for all kinds, in place of each one's")
    parser.add_argument("--seeds", type=int, default=3, help="videos for each row")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path, help="Markdown file to write too")
    words = list(sys.argv[1:] if argv is None else argv)
    place = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:place])
    flags = words[place + 1:] or list(TINY_FLAGS)
    request = parse(GenerationRequest, flags, prog="step_cache_quality.py", description="", foreign=FOREIGN)
    request = request.model_copy(update={"infer_steps": arguments.steps, "save_path": None})
    lines = ["| cache and threshold | block passes saved | sampling time | PSNR dB: mean (lowest) | sync r |",
             "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for line in rows(request, range(arguments.seeds), arguments.kinds, arguments.thresholds):
        print(line, flush=True)
        lines.append(line)
    if arguments.out is not None:
        write_text(arguments.out, "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
