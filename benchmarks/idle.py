"""How long the GPU has nothing to do in a real training, what makes the host wait, and what is compiled when.

    python -m benchmarks.idle RESULTS_DIR                        # 1.3B, compiled, 81 frames; 2 min on an H200
    python -m benchmarks.idle RESULTS_DIR --only "short"         # clips so short that the host may be the slower one
    python -m benchmarks.idle RESULTS_DIR --only "short, CUDA graphs"   # the same with recorded graphs; 100 s
    python -m benchmarks.idle RESULTS_DIR --tiny                 # a minute on a CPU, where idle time is not measured

A row makes a DiT of random weights and a dataset of two sizes (small films with sound, and cached features of random
numbers, by the caches' own writer), and runs `training.build.train` on it as a user would: LoRA of rank 32, audio
condition, everything else at its default but for `--compile`, since so few steps are not compiled by themselves. After
the warm-up torch.profiler notes what the GPU does (kernels and copies): idle is the share of the time between the
first and the last of it in which none runs. In the last steps torch.cuda.set_sync_debug_mode tells every call that has
the host wait for the device, with its place. Each step ends with one read of a copy that was queued before; that is
told beside (it waits for an event, which is no such call). Goals: idle below 2 %, no such calls, no graph after a
size's second step, no graph breaks. A line a row is appended to RESULTS_DIR/idle.jsonl.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
import json
import logging
from pathlib import Path
from statistics import median
import sys
import tempfile
import time
import traceback
from typing import Any
import warnings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402

from benchmarks.random_weights import SIZES  # noqa: E402
from benchmarks.step_profile import device_intervals, gaps_by_length, idle_of  # noqa: E402
from training.estimating.random_weights import random_weight  # noqa: E402

WARM, PROFILED, WATCHED = 8, 12, 5
"""Steps before anything is measured, under the profiler, and with its calls watched."""
CLIPS = 3
"""Of each size: an epoch ends in the warm-up, two under the profiler and one while calls are watched."""
IDLE_GOAL = 0.02
STATES, WIDTH = 13, 768
"""Of wav2vec2-base."""
FPS = 25


@dataclass(frozen=True)
class Row:
    """One run."""

    name: str
    task: str
    """Key of `random_weights.SIZES`."""
    layers: int
    sizes: tuple[tuple[int, int, int], ...]
    """(width, height, frames); two with other numbers of tokens."""
    compile: str = "on"
    mode: str | None = None
    """Of torch.compile; `reduce-overhead` records CUDA graphs."""

    @property
    def steps(self) -> int:
        """Of the run."""
        return WARM + PROFILED + WATCHED


LONG, SHORT = ((832, 480, 81), (832, 480, 77)), ((832, 480, 33), (480, 480, 49))
ROWS = (Row("long", "t2v-1.3B", 30, LONG), Row("short", "t2v-1.3B", 30, SHORT),
        Row("short, uncompiled", "t2v-1.3B", 30, SHORT, compile="off"),
        Row("short, CUDA graphs", "t2v-1.3B", 30, SHORT, mode="reduce-overhead"))
TINY = Row("tiny", "tiny", 4, ((48, 32, 9), (32, 32, 13)))


def write_weights(path: Path, row: Row) -> None:
    """The DiT in one file, bfloat16 numbers."""
    from safetensors.torch import save_file

    from wan.modules.dit import WanDiT
    from wan.variants import Variant

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        shapes = WanDiT(Variant(**{**SIZES[row.task], "layers": row.layers})).state_dict()
    save_file({key: random_weight(key, one.shape, torch.bfloat16, device).cpu() for key, one in shapes.items()}, path)


def write_dataset(folder: Path, row: Row) -> Path:
    """Films with sound of every size, and the TOML of both."""
    from common.media.sound import Sound
    from common.media.video_writer import write_video

    entries = []
    for number, (width, height, frames) in enumerate(row.sizes):
        films = folder / f"films{number}"
        films.mkdir()
        draws = np.random.default_rng(number)
        for clip in range(CLIPS):
            picture = draws.integers(0, 256, (1, height // 4 * 2, width // 4 * 2, 3), np.uint8)
            pictures = picture.repeat(frames, axis=0)
            sound = Sound(draws.normal(0, 0.1, (1, 16000 * frames // FPS)).astype(np.float32), 16000)
            write_video(films / f"film{clip}.mp4", pictures, fps=FPS, sound=sound)
            (films / f"film{clip}.txt").write_text("A person talks.", encoding="utf-8")
        entries.append(f'[[datasets]]\nvideo_directory = "{films.as_posix()}"\ncache_directory = '
                       f'"{(folder / f"cache{number}").as_posix()}"\nresolution = [{width}, {height}]\n'
                       f'audio = "clip"\ntarget_fps = {FPS}\ntarget_frames = [{frames}]\n')
    path = folder / "data.toml"
    path.write_text('[general]\ncaption_extension = ".txt"\nbatch_size = 1\n' + "".join(entries), encoding="utf-8")
    return path


def write_caches(data: Path, text_dim: int) -> None:
    """Random features of every clip, as the cache scripts would have written them."""
    from dataset.config import load_dataset_config
    from dataset.jobs import FeatureJob
    from dataset.open import open_dataset
    from dataset.store import CacheStore
    from wan.encoders.specs import LATENTS, REFERENCE_LATENTS, audio_spec, text_spec

    jobs = {name: FeatureJob(spec, (need,), "random") for name, spec, need in (
        ("latents", LATENTS, "frames"), ("reference", REFERENCE_LATENTS, "reference"),
        ("text", text_spec("empty"), "caption"), ("audio", audio_spec("file"), "sound"))}
    dataset = open_dataset(load_dataset_config(data))
    store = CacheStore(dataset)
    draws = torch.Generator().manual_seed(0)
    for item in dataset.items:
        (span,) = item.spans
        sizes = dataset.sizes(item, span)
        latents = torch.randn(16, sizes["F"], sizes["H"], sizes["W"], generator=draws)
        store.write(item, span, jobs["latents"], {"latents": latents})
        store.write(item, span, jobs["reference"], {"latents": latents[:, :1].contiguous()})
        store.write(item, None, jobs["text"], {"hidden": torch.randn(40, text_dim, generator=draws).bfloat16(),
                                               "null": torch.randn(2, text_dim, generator=draws).bfloat16()})
        store.write(item, None, jobs["audio"], {"states": torch.randn(item.n_frames, STATES, WIDTH, generator=draws)})


class Watch:
    """Counts steps by torch's own hook behind an optimiser's step, and measures in those that are meant for it."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu = on_gpu
        self.step = 0
        self.intervals: list[tuple[int, int, str]] = []
        """(begin, end in ns, name) of what the GPU did under the profiler."""
        self.waits: Counter[str] = Counter()
        """Calls that had the host wait, by their place in our code."""
        self.failure = ""
        self._profiler: Any = None

    def after_step(self, optimizer: Any, arguments: Any, named: Any) -> None:
        """Go on to what the next step is for."""
        self.step += 1
        if not self.on_gpu:
            return
        if self.step == WARM:
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
            self._profiler.start()
        elif self.step == WARM + PROFILED:
            torch.cuda.synchronize()
            self._profiler.stop()
            self._read()
            torch.cuda.set_sync_debug_mode("warn")
        elif self.step == WARM + PROFILED + WATCHED:
            torch.cuda.set_sync_debug_mode("default")

    def _read(self) -> None:
        try:
            self.intervals += device_intervals(self._profiler)
        except Exception as error:  # noqa: BLE001 - another torch: the other figures are still worth having
            self.failure = f"{type(error).__name__}: {error}"
        self._profiler = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around the run."""
        def note(message: Any, category: Any, filename: str, lineno: int, *_: Any) -> None:
            if "synchroniz" not in str(message) or "prototype" in str(message):
                return
            own = [frame for frame in traceback.extract_stack() if str(ROOT) in frame.filename
                   and not frame.filename.endswith("idle.py")]
            where = own[-1] if own else None
            self.waits[f"{Path(where.filename).relative_to(ROOT)}:{where.lineno} ({where.line})" if where
                       else f"{filename}:{lineno}"] += 1

        hook = register_optimizer_step_post_hook(self.after_step)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note  # type: ignore[assignment]
            try:
                yield
            finally:
                hook.remove()
                if self.on_gpu:
                    torch.cuda.set_sync_debug_mode("default")


def run_row(row: Row, work: Path) -> dict[str, Any]:
    """Prepare, train, and put the figures together."""
    from training.build import train
    from training.config import TrainConfig

    on_gpu = torch.cuda.is_available()
    started = time.monotonic()
    write_weights(work / "dit.safetensors", row)
    data = write_dataset(work, row)
    write_caches(data, SIZES[row.task]["text_dim"])
    prepared = time.monotonic() - started
    more = {} if row.compile == "off" or on_gpu else {"compile_backend": "aot_eager"}
    config = TrainConfig.from_flags(
        dataset_config=data, dit=work / "dit.safetensors", output_dir=work / "out", output_name="idle", network_dim=32,
        task=row.task if row.task == "t2v-1.3B" else "t2v-14B", network_alpha=32, learning_rate=1e-5, seed=1,
        network_args=["conditions=omniavatar_add"], timestep_sampling="shift", discrete_flow_shift=5.0,
        max_train_steps=row.steps, compile=row.compile, compile_mode=row.mode, **more)
    watch = Watch(on_gpu)
    with watch.watching():
        train(config)
    seconds = [line["seconds"] for text in (work / "out" / "metrics.jsonl").read_text().splitlines()
               if "seconds" in (line := json.loads(text)) and "loss" in line]
    graphs = json.loads((work / "out" / "training_state.json").read_text())["graphs"]
    found: dict[str, Any] = {
        "row": asdict(row), "device": torch.cuda.get_device_name() if on_gpu else "CPU", "torch": torch.__version__,
        "prepared_s": prepared, "run_s": time.monotonic() - started - prepared, "warm_up_s": sum(seconds[:WARM]),
        "step_profiled_s": median(seconds[WARM:WARM + PROFILED - 1]), "graphs": graphs,
        "step_s": median(seconds[WARM + PROFILED:]),
        "waits_a_step": sum(watch.waits.values()) / WATCHED if on_gpu else None, "waits": dict(watch.waits)}
    if watch.intervals:
        share, span, gaps = idle_of(watch.intervals)
        found |= {"idle": share, "idle_ms_a_step": share * span / PROFILED, "gaps_ms": gaps,
                  "idle_by_length": gaps_by_length(watch.intervals),
                  "gpu_events": len(watch.intervals)}
    else:
        found |= {"idle": None, "idle_note": watch.failure or "no GPU here"}
    return found


def lines_of(found: dict[str, Any]) -> Iterator[str]:
    """The row's figures, beside their goals."""
    graphs = found["graphs"] or {"made_late": 0, "breaks": 0, "sizes": []}
    idle = f"unavailable ({found['idle_note']})" if found["idle"] is None else (
        f"{100 * found['idle']:.2f} % ({found['idle_ms_a_step']:.1f} ms a step)")
    waits = "unavailable (no GPU here)" if found["waits_a_step"] is None else f"{found['waits_a_step']:g} a step"
    yield f"\n| {found['row']['name']} on {found['device']}, torch {found['torch']} | found | goal |"
    yield "|---|---|---|"
    yield f"| idle between first and last kernel | {idle} | < {100 * IDLE_GOAL:.0f} % |"
    yield f"| calls that have the host wait | {waits} (and one read, queued before) | 0 |"
    yield f"| graphs made after a size's second step | {graphs['made_late']} | 0 |"
    yield f"| graph breaks | {graphs['breaks']} | 0 |"
    yield f"| s a step, profiled / not | {found['step_profiled_s']:.3f} / {found['step_s']:.3f} | |"
    yield f"| prepared / warm-up / whole run, s | {found['prepared_s']:.0f} / {found['warm_up_s']:.0f} / " \
          f"{found['run_s']:.0f} | |"
    for size in graphs["sizes"]:
        yield f"  {size['for']}, {size['tokens']} tokens: {size['graphs']} graphs in step {size['steps']}"
    for length, count, ms in found.get("idle_by_length", ()):
        yield f"  gaps {length}: {count / PROFILED:.0f} a step, {ms / PROFILED:.2f} ms"
    for length, where in found.get("gaps_ms", ()):
        yield f"  gap of {length:.2f} ms: {where}"
    for where, count in found["waits"].items():
        yield f"  waits {count} times: {where}"


def main() -> int:
    """Run the rows; 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="+", choices=[row.name for row in ROWS], default=["long"])
    parser.add_argument("--tiny", action="store_true", help="small weights and clips, to try the benchmark itself")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    given.results.mkdir(parents=True, exist_ok=True)
    failed = 0
    for row in [TINY] if given.tiny else [row for row in ROWS if row.name in given.only]:
        with tempfile.TemporaryDirectory() as folder:
            try:
                found = run_row(row, Path(folder))
            except Exception:  # noqa: BLE001 - the other rows are still worth having
                failed += 1
                print(f"{row.name} failed:\n{traceback.format_exc()[-3000:]}", flush=True)
                found = {"row": asdict(row), "error": traceback.format_exc()[-1500:]}
            else:
                print("\n".join(lines_of(found)), flush=True)
        with (given.results / "idle.jsonl").open("a") as file:
            file.write(json.dumps(found) + "\n")
        torch._dynamo.reset()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
