"""The preflight's estimate beside real steps on random weights: memory and seconds, in float8 and bfloat16.

    python -m benchmarks.preflight WORK_DIR RESULT_DIR --task t2v-14B
    python -m benchmarks.preflight WORK_DIR RESULT_DIR --tiny          # a few seconds, on the CPU

Writes the DiT's random weights into WORK_DIR once (28.6 GB for 14B). Each case runs in a process of its own: first
`training.estimating.estimate` as --preflight runs it, then real steps through the trainer's own loading, network, loop
and optimiser on cached clips of random numbers. Every case appends a line to RESULT_DIR/preflight.jsonl and writes
RESULT_DIR/preflight.md anew. Cases that would begin after --deadline seconds are left out and named.
"""

import argparse
from dataclasses import asdict, dataclass
import json
import logging
from pathlib import Path
from statistics import median
import subprocess
import sys
import time
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

GIB = 2**30
FPS = 25.0
STATES, WIDTH = 13, 768
"""Of wav2vec2-base."""
WARM_UPS = 1


@dataclass(frozen=True)
class Case:
    """One run."""

    name: str
    fp8: bool
    checkpointing: bool
    frames: int
    steps: int
    """Real steps; the first does not count."""
    height: int = 480
    width: int = 832


LARGE = (
    Case("bf16, checkpointing, 33 frames", False, True, 33, 4),
    Case("fp8, checkpointing, 81 frames", True, True, 81, 3),
    Case("bf16, none, 17 frames", False, False, 17, 5),
    Case("fp8, none, 17 frames", True, False, 17, 5),
)
"""Without checkpointing a 14B step on 33 frames keeps about 144 GiB: more than an H200 has."""
SMALL = tuple(Case(f"{'fp8' if fp8 else 'float32'}, {'checkpointing' if kept else 'none'}, 33 frames", fp8, kept, 33, 8,
                   128, 128) for fp8 in (False, True) for kept in (True, False))


def write_weights(folder: Path, task: str) -> None:
    """Random DiT shards, once."""
    import torch

    from benchmarks.random_weights import write_dit

    if (folder / "done").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    write_dit(folder, task, "cuda" if torch.cuda.is_available() else "cpu")
    (folder / "done").touch()


def clip_of(case: Case, folder: Path, text_dim: int) -> Any:
    """A cached clip of random numbers: latents, text, sound and reference picture."""
    import torch

    from common.tensorfile import save_tensors
    from common.timebase import latent_frame_count
    from dataset.items import Item
    from dataset.plan import FeatureEntry, TrainingItem
    from dataset.rows import FileRef
    from dataset.sources import Clock
    from dataset.spans import Span
    from wan.encoders.specs import LATENTS, REFERENCE_LATENTS, TEXT, audio_spec

    span = Span(0, case.frames, case.width, case.height)
    sizes = {"F": latent_frame_count(case.frames), "H": case.height // 8, "W": case.width // 8, "N": case.frames}
    latents = torch.randn(16, sizes["F"], sizes["H"], sizes["W"], generator=torch.Generator().manual_seed(0))
    tensors = {LATENTS: latents, TEXT: torch.randn(40, text_dim), REFERENCE_LATENTS: latents[:, :1],
               audio_spec("clip"): torch.randn(case.frames, STATES, WIDTH)}
    entries = []
    for spec, tensor in tensors.items():
        path = folder / f"clip-{case.frames}-{case.width}.{spec.name}.safetensors"
        save_tensors(path, {spec.tensors[0].name: tensor.contiguous()}, {})
        entries.append(FeatureEntry(spec, path))
    item = Item(key="clip", name="clip.mp4", where="clip.mp4", section="clips", section_index=0, kind="video",
                media=FileRef(folder / "clip.mp4", "clip.mp4"), content="clip", caption="", clock=Clock(FPS),
                n_frames=case.frames, picture_start_s=0.0, spans=(span,), repeats=case.steps, batch_size=1,
                cache=folder)
    return TrainingItem(item, span, tuple(entries), sizes)


def config_of(case: Case, work: Path, task: str) -> Any:
    """The settings that a user would give."""
    from training.config import TrainConfig

    return TrainConfig.from_flags(**{
        "dataset_config": work / "none.toml", "dit": work / "weights", "output_dir": work / "out",
        "task": "t2v-14B" if task == "tiny" else task, "network_dim": 32, "network_alpha": 32,
        "network_args": ["conditions=omniavatar_add"], "learning_rate": 1e-5, "max_train_steps": case.steps, "seed": 0,
        "mixed_precision": "no" if task == "tiny" else "bf16", "fp8_base": case.fp8,
        "gradient_checkpointing": case.checkpointing, "timestep_sampling": "shift", "discrete_flow_shift": 5.0,
        "max_data_loader_n_workers": 0, "preflight": True})


def plan_of(config: Any, case: Case, work: Path) -> Any:
    """What `training.preflight.check` would make of it, with the one clip in place of a dataset."""
    from networks.base import split_network_args
    from training.preflight import Plan
    from training.showing import Showing
    from wan.conditions.registry import build_condition
    from wan.variants import find_task
    from wan.weights.dit import inspect_dit

    variant = inspect_dit(config.data.dit).variant
    conditions = {"omniavatar_add": build_condition("omniavatar_add", {}, variant)}
    return Plan(task=find_task(config.data.task), variant=variant,
                arguments=split_network_args(config.network.network_args), conditions=conditions,
                dataset=cast("Any", None), clips=[clip_of(case, work, variant.text_dim)], held_out=[], merge=None,
                start=None, is_stored_in_fp8=False, showing=Showing())


def run_case(case: Case, work: Path, task: str) -> dict[str, Any]:
    """Estimate, then real steps."""
    import torch

    from common.devices import free_memory
    from training.build import checkpoint_plan, loop_settings
    from training.clips import EpochBatches
    from training.estimating.estimate import tell_estimate
    from training.launch import set_up_torch
    from training.processes import Processes

    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    config = config_of(case, work, task)
    set_up_torch(config.speed, 0)
    plan = plan_of(config, case, work)
    batches = EpochBatches(plan.clips, 0, Processes(device=device))
    started = time.perf_counter()
    figures = tell_estimate(config, plan, batches, length=loop_settings(config), checkpoints=checkpoint_plan(config))
    estimate_s = time.perf_counter() - started
    assert figures is not None and figures.speed is not None
    free_memory()
    memory = figures.memory
    row: dict[str, Any] = {
        "case": asdict(case), "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "torch": torch.__version__, "estimate_s": estimate_s, "tokens": figures.largest.tokens,
        "estimated": {"allocated": memory.allocated, "reserved": memory.reserved, "on_device": memory.on_device,
                      "step_s": figures.speed.step_s(1), "optimizer_s": figures.speed.optimizer_s,
                      "parts": {name: getattr(memory, name) for name in ("base", "network", "gradients", "optimizer",
                                                                         "activations")}}}
    row["measured"] = measured(config, plan, batches)
    row["ratios"] = {key: row["estimated"][key] / row["measured"][key] for key in row["measured"]
                     if key in row["estimated"] and row["measured"][key]}
    return row


def measured(config: Any, plan: Any, batches: Any) -> dict[str, Any]:
    """Real loading, network, optimiser and loop: peak bytes and seconds a step. On a CPU the bytes are counted."""
    import torch

    from training.build import build_learning, build_network, load_base, loop_settings, schedule_settings
    from training.estimating.live_bytes import LiveBytes
    from training.guard import Guard
    from training.job import JobSettings, VideoJob
    from training.loop import Loop
    from training.preflight import timestep_settings

    device = batches.processes.device
    is_gpu = device.type == "cuda"

    def run(steps: int | None) -> list[float]:
        started = time.perf_counter()
        dit = load_base(config, plan, device)
        network = build_network(config, plan, dit)
        job = VideoJob(dit, network, JobSettings(0, timestep_settings(config), showing=plan.showing),
                       epoch_batches=batches, batches_per_epoch=batches.per_epoch,
                       samples_per_epoch=batches.samples_per_epoch)
        settings = loop_settings(config)
        schedule = schedule_settings(config.optimiser, settings.totals(batches.per_epoch)[0])
        optimizer, scheduler = build_learning(config.optimiser, network, schedule)
        seconds = seconds_of_steps(steps)
        if is_gpu:
            torch.cuda.synchronize()
        print(f"loaded in {time.perf_counter() - started:.1f} s", flush=True)
        Loop(job, optimizer=optimizer, schedule=scheduler, settings=settings, processes=batches.processes,
             callbacks=[seconds], guard=Guard(0.0)).run()
        network.detach()
        return seconds.times

    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
        times = run(None)
        torch.cuda.synchronize()
        return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved(),
                "on_device": used_by_smi(), "step_s": median(times[WARM_UPS:]), "steps_s": times}
    times = run(None)
    with LiveBytes() as counter:
        run(2)
    return {"allocated": counter.peak, "step_s": median(times[WARM_UPS:]), "steps_s": times}


def seconds_of_steps(most: int | None) -> Any:
    """A callback that notes the seconds of every step in `times`, and ends the run after `most`."""
    from training.callbacks import Callback, Run, StepReport

    class Seconds(Callback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step(self, run: Run, report: StepReport) -> None:
            self.times.append(report.seconds)
            print(f"step {report.step}: {report.seconds:.3f} s, loss {report.loss:.4f}", flush=True)
            if most is not None and len(self.times) >= most:
                cast("Any", run).stop("enough steps")

    return Seconds()


def used_by_smi() -> int | None:
    """Bytes in use on the first GPU, all processes together; torch still holds what it reserved at the peak."""
    try:
        text = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"],
                              capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return int(text.split()[0]) * 2**20


def write_table(results: Path) -> None:
    """All lines of the folder as one table."""
    lines = ["| case | tokens | GiB allocated: estimated / measured | reserved | nvidia-smi | s a step: estimated / "
             "measured | estimate took |", "|---|---|---|---|---|---|---|"]
    for text in (results / "preflight.jsonl").read_text().splitlines():
        row = json.loads(text)
        if "error" in row:
            lines.append(f"| {row['name']} | failed: {row['error'][-300:].strip().splitlines()[-1]} | | | | | |")
            continue
        cells = [_pair(row, key, GIB) for key in ("allocated", "reserved", "on_device")]
        lines.append(f"| {row['case']['name']} ({row['device']}, torch {row['torch']}) | {row['tokens']} | "
                     f"{' | '.join(cells)} | {_pair(row, 'step_s', 1)} | {row['estimate_s']:.1f} s |")
    (results / "preflight.md").write_text("\n".join(lines) + "\n")


def _pair(row: dict[str, Any], key: str, unit: float) -> str:
    found = row["measured"].get(key)
    if not found:
        return "-"
    return f"{row['estimated'][key] / unit:.3f} / {found / unit:.3f} = {row['ratios'][key]:.3f}"


def main() -> None:
    """Run the cases, one process each, or one case of them here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--task", default="t2v-14B", choices=("t2v-1.3B", "t2v-14B"))
    parser.add_argument("--tiny", action="store_true", help="small weights and clips, to try the benchmark itself")
    parser.add_argument("--deadline", type=float, default=400, help="seconds after which no case begins")
    parser.add_argument("--only", nargs="+", type=int, help="numbers of the cases to run, from 0")
    parser.add_argument("--case", type=int, help="run this one in this process (-1: write the weights)")
    arguments = parser.parse_args()
    work, results = arguments.work.resolve(), arguments.results.resolve()
    task, cases = ("tiny", SMALL) if arguments.tiny else (arguments.task, LARGE)
    work.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    if arguments.case is not None:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        if arguments.case < 0:
            write_weights(work / "weights", task)
            return
        row = run_case(cases[arguments.case], work, task)
        with (results / "preflight.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        return
    started = time.monotonic()
    own = [sys.executable, "-m", "benchmarks.preflight", *sys.argv[1:], "--case"]
    subprocess.run([*own, "-1"], cwd=ROOT, check=True)
    print(f"weights are there after {time.monotonic() - started:.0f} s", flush=True)
    for number in arguments.only or range(len(cases)):
        name = cases[number].name
        if time.monotonic() - started > arguments.deadline:
            print(f"left out, because the time is over: {name}", flush=True)
            continue
        done = subprocess.run([*own, str(number)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        print(done.stderr[-6000:], flush=True)
        if done.returncode:
            with (results / "preflight.jsonl").open("a") as file:
                file.write(json.dumps({"name": name, "error": done.stderr[-2000:]}) + "\n")
        write_table(results)
        print(f"{name}: done after {time.monotonic() - started:.0f} s", flush=True)
    print((results / "preflight.md").read_text())


if __name__ == "__main__":
    main()
