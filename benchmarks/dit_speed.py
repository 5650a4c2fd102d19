"""Seconds and memory of a LoRA training step and of a forward, on random weights at the real sizes.

    python -m benchmarks.dit_speed RESULTS                    # every row, on a GPU
    python -m benchmarks.dit_speed RESULTS --list             # the rows with about how long each takes
    python -m benchmarks.dit_speed RESULTS --only 0 2 "24 GB" # some, by number or by a part of the name
    python -m benchmarks.dit_speed RESULTS --tiny             # on the CPU, to see that it runs

Each row is a step of the trainer's own parts (`training.estimating.trial`: model, LoRA r = 32 on every linear of the
blocks, bucket, AdamW; `training.fitting.attach`), batch 1; the median of --steps after two for warming up. Rows of a
group share a process and its weights. `--memory auto` is the trainer's own choice, made in the process, limited as the
row says. Each process measures the machine's ceilings. Lines go to RESULTS/speed.jsonl (`benchmarks.speed_table`).
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
import itertools
import math
from pathlib import Path
from statistics import median
import subprocess
import sys
import tempfile
import time
from typing import Any, cast

from benchmarks.dit_rows import GIB, GROUPS, ROWS, SIZES, Row, chosen, tiny
from benchmarks.records import Records, finish, lines_of
from benchmarks.step_profile import profile_steps

ROOT = Path(__file__).resolve().parent.parent
WARM_UPS = 2
STARTUP = 20
"""Seconds until a group's 14B model is there."""


class Bench:
    """The model of a group with its LoRA and optimiser, and the rows on it."""

    def __init__(self, first: Row, *, device: str, rank: int, profiles: Path | None = None) -> None:
        """`profiles`: where a page a row goes that says what its time went to; None: no such pages."""
        import torch

        from training.estimating.random_weights import random_weight
        from training.estimating.trial import Recipe, Trial, empty_dit
        from wan.memory.fp8 import Fp8Settings
        from wan.variants import Variant

        self.where, self.rank = torch.device("cuda:0" if device == "cuda" else device), rank
        self.profiles = profiles
        self.variant = Variant(out_channels=16, **SIZES[first.task])
        fp8 = {"": None, "stores": Fp8Settings(), "computes": Fp8Settings(mode="tensor", computes=True)}[first.fp8]
        recipe = Recipe(variant=self.variant, dtype=torch.bfloat16, is_gpu=self.where.type == "cuda", fp8=fp8,
                        network_dim=rank, network_alpha=float(rank))
        torch.manual_seed(1)  # the same weights for the same model, so that losses of two rows can be compared
        self.trial = Trial(recipe, partial(random_weight, device=self.where), dit=empty_dit(recipe), device=self.where)
        self.trial.make_optimizer()
        self._optimise()  # its state is there from the first row on

    def measure(self, row: Row) -> dict[str, Any]:
        """One row: seconds, peaks, what was compiled, and the settings that were measured."""
        import torch

        from training.fitting import attach
        from wan.memory.compile_modes import RECORDING

        dit = self.trial.dit
        config = self._settled(row)
        dit.set_attention(row.attention)
        attach(config, dit)
        if row.kind == "forward":
            self.trial.network.detach()
        blocks, losses = range(self.variant.layers), []
        inputs = random_inputs(self.variant, row.grid, self.where)
        marks, warm = [self._mark()], []
        if row.kind == "step":
            self._learn(inputs, blocks)
        for number in range(WARM_UPS + row.steps):
            if number == WARM_UPS:
                warm, marks = self._between(marks), [self._mark()]
                if self.where.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
            losses += self._step(row, inputs, blocks)
            marks.append(self._mark())
        seconds = self._between(marks)
        assert all(map(math.isfinite, losses)), f"the losses are no numbers: {losses}"
        peaks: dict[str, Any] = {}
        if self.where.type == "cuda":
            peaks = {"allocated_gib": torch.cuda.max_memory_allocated() / GIB,
                     "reserved_gib": torch.cuda.max_memory_reserved() / GIB}
        if row.mode in RECORDING:
            peaks.pop("allocated_gib", None)
            peaks["note"] = "torch does not count as allocated what replayed graphs use: reserved bytes alone"
        counters = torch._dynamo.utils.counters
        card = config.small_card
        if self.profiles is not None and self.where.type == "cuda":
            peaks["profile"] = profile_steps(lambda: self._step(row, inputs, blocks),
                                             self.profiles, row.name)
        return {"seconds": median(seconds), "all_s": [*warm, *seconds], "losses": losses, **peaks,
                "graphs": counters["stats"].get("unique_graphs", 0),
                "graph_breaks": sum(counters["graph_break"].values()), "fell_back": self._fell_back(),
                "settings": {"activations": config.speed.memory, "swapped": card.blocks_to_swap,
                             "offloads": card.gradient_checkpointing_cpu_offload, "rank": self.rank}}

    def _step(self, row: Row, inputs: Any, blocks: Any) -> list[float]:
        """One step, or one forward; its loss where there is one.

        A step begins where the trainer's loop may: at the weights' update, behind which the next step's forward and
        backward pass are queued before the loss is read.
        """
        if row.kind == "forward":
            self.trial.forward(inputs, blocks)
            return []
        return [self._optimise(lambda: self._learn(inputs, blocks))]

    def _learn(self, inputs: Any, blocks: Any) -> None:
        """Forward and backward pass of one batch."""
        self.trial.bucket.clear()
        self.trial.forward_backward(inputs, blocks)

    def _mark(self) -> Any:
        """This moment in the device's own order: steps follow each other as in training, with no wait in between."""
        import torch

        if self.where.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, marks: list[Any]) -> list[float]:
        """Seconds from each mark to the next."""
        finish(self.where)
        if self.where.type != "cuda":
            return [after - before for before, after in itertools.pairwise(marks)]
        return [before.elapsed_time(after) / 1e3 for before, after in itertools.pairwise(marks)]

    def reset(self) -> None:
        """Undo what a row put on: nothing is swapped, compiled, limited or detached."""
        import torch

        from common.devices import free_memory

        dit = self.trial.dit
        if (runner := self._runner()) is not None:
            runner.release()
        vars(dit).pop("run_block", None)
        for tensor in [*dit.blocks.parameters(), *dit.blocks.buffers()]:
            if tensor.device != self.where:
                tensor.data = tensor.data.to(self.where)
            elif tensor.untyped_storage().nbytes() > tensor.nbytes:  # in a ring of block swap
                tensor.data = tensor.data.clone()
        self.trial.network.attach()
        self.trial.bucket.clear()
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        free_memory()
        if self.where.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)

    def _optimise(self, learn_on: Callable[[], None] = lambda: None) -> float:
        """Update the weights, then `learn_on`; the loss comes back. Reading it is a step's one wait for the device."""
        from training.optimizers import step_unless

        assert self.trial.optimizer is not None
        queued = self.trial.bucket.queue_reduce(1.0)
        if is_taken := step_unless(self.trial.optimizer, queued.refused):
            learn_on()
        loss = queued.read().loss
        if not is_taken:
            self.trial.optimizer.step()
            learn_on()
        return loss

    def _settled(self, row: Row) -> Any:
        """The run's settings as a user types them, with `auto` decided."""
        from training.config import TrainConfig
        from training.estimating.memory_choice import decide

        config = TrainConfig.from_flags(
            dataset_config=Path("none.toml"), dit=Path("none"), output_dir=Path("none"),
            task=row.task if row.task in ("t2v-14B", "i2v-14B", "t2v-1.3B") else "t2v-14B", network_dim=self.rank,
            network_alpha=self.rank, mixed_precision="bf16", fp8_base=row.fp8 == "stores",
            fp8_fast=row.fp8 == "computes", memory=row.activations, compile=row.compiled,
            compile_mode=row.mode, compile_backend="inductor" if self.where.type == "cuda" else "aot_eager",
            blocks_to_swap=row.swapped, gradient_checkpointing_cpu_offload=row.offloads)
        if row.limit is not None and self.where.type == "cuda":
            limit(self.where, row.limit)
        if row.activations != "auto":
            return config
        with tempfile.TemporaryDirectory() as folder:
            return decide(config, *self._one_clip(row, config, Path(folder)))

    def _one_clip(self, row: Row, config: Any, folder: Path) -> Any:
        """A plan and its batches: one cached clip of the row's size."""
        from benchmarks.preflight import Case, clip_of
        from training.clips import EpochBatches
        from training.preflight import Plan
        from training.processes import Processes
        from training.showing import Showing
        from wan.variants import find_task

        frames, height, width = row.grid
        case = Case("", True, True, 4 * frames - 3, 1, 8 * height, 8 * width)
        plan = Plan(task=find_task(config.data.task), variant=self.variant, arguments={}, conditions={},
                    dataset=cast("Any", None), clips=[clip_of(case, folder, self.variant.text_dim)], held_out=[],
                    merge=None, start=None, is_stored_in_fp8=False, showing=Showing())
        return plan, EpochBatches(plan.clips, 0, Processes(device=self.where))

    def _runner(self) -> Any:
        """What runs the blocks, inside of what swaps or recomputes them; None where nothing does."""
        from wan.memory.blocks import BlockRunner

        one = vars(self.trial.dit).get("run_block")
        while one is not None and not isinstance(one, BlockRunner):
            one = one.args[0] if getattr(one, "args", None) else None
        return one

    def _fell_back(self) -> bool:
        """Whether a block was to be compiled and could not."""
        runner = self._runner()
        return runner is not None and any(not getattr(part, "_works", True) for part in runner._parts.values())


def random_inputs(variant: Any, grid: tuple[int, int, int], where: Any) -> Any:
    """One clip as the model sees it: latents, 512 tokens of text, and what an image-to-video model is given."""
    import torch

    from common.features import FeatureBatch
    from training.estimating.trial import StepInputs

    torch.manual_seed(0)

    def random(*shape: int, dtype: Any = torch.float32) -> Any:
        return torch.randn(shape, device=where, dtype=dtype)

    features: dict[str, Any] = {"text": {"hidden": [random(512, variant.text_dim, dtype=torch.bfloat16)]}}
    if variant.has_image_branch:
        features["image_latents"] = {"latents": random(1, variant.extra_channels, *grid)}
        features["clip"] = {"first": random(1, variant.image_tokens, variant.image_dim, dtype=torch.bfloat16)}
    return StepInputs(random(1, 16, *grid), FeatureBatch(features=features, frames=4 * grid[0] - 3, fps=16.0))


def limit(where: Any, nbytes: float) -> None:
    """Let this process use so much of the GPU; it must be what `--memory auto` then sees."""
    import torch

    from common.devices import reach

    total = torch.cuda.mem_get_info(where)[1]
    torch.cuda.set_per_process_memory_fraction(nbytes / total, where)
    torch.cuda.reset_peak_memory_stats(where)
    found = reach(where)
    assert abs(found - nbytes) < GIB / 100, f"limited to {nbytes:.3g} bytes, and the choice would see {found:.3g}"


def run_here(numbers: list[int], given: argparse.Namespace) -> int:
    """Measure rows that share a model, in this process; one that fails costs only itself."""
    from common.devices import free_memory

    device = "cpu" if given.tiny else "cuda"
    records = Records(given.results, commit=given.commit)
    records.measure_ceilings(device)
    free_memory()
    rows = {number: replace(ROWS[number], steps=given.steps or ROWS[number].steps) for number in numbers}
    started, bench = time.monotonic(), None
    for number, row in rows.items():
        if time.time() + row.seconds + (STARTUP if bench is None else 0) > given.until:
            print(f"left out, because the time is over: {number} {row.name}", flush=True)
            continue
        began = time.monotonic()
        measured = tiny(row) if given.tiny else row
        facts = {"row": row.name, "number": number, "asked": asdict(measured), "is_tiny": given.tiny}
        try:
            if bench is None:
                bench = Bench(measured, device=device, rank=4 if given.tiny else 32,
                              profiles=given.results if given.profile else None)
                print(f"  model after {time.monotonic() - started:.1f} s", flush=True)
                bench.reset()
            records.add("dit", **facts, **bench.measure(measured))
        except Exception as error:  # noqa: BLE001 - one row must not cost the others
            records.add("dit", **facts, error=f"{type(error).__name__}: {str(error).strip()[:400]}")
            print(f"  failed: {type(error).__name__}: {str(error).strip()[:1500]}", flush=True)
        if bench is not None:
            bench.reset()
        print(f"  {number} {row.name}: {time.monotonic() - began:.1f} s", flush=True)
    return 0


def run_rows(numbers: list[int], results: Path, more: list[str], until: float) -> None:
    """Measure rows, a process a group. What kills a process is told of the row that it died in; the rest goes on."""
    first = 0
    for group in GROUPS:
        left = [number for number in numbers if first <= number < first + len(group)]
        first += len(group)
        while left and time.time() < until:
            before = sum(1 for _ in lines_of(results))
            words = [sys.executable, "-m", "benchmarks.dit_speed", str(results), *more, "--until", str(until), "--here",
                     *map(str, left)]
            done = subprocess.run(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
            if done.returncode == 0:
                break
            told = [line.get("number") for line in list(lines_of(results))[before:] if line["part"] == "dit"]
            left = [number for number in left if number not in told]
            print(done.stderr[-2000:], flush=True)
            if left:
                Records(results).add("dit", row=ROWS[left[0]].name, number=left[0], asked=asdict(ROWS[left[0]]),
                                     error=(done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
                left = left[1:]


def main() -> int:
    """Measure what was asked for and print the table."""
    from benchmarks.speed_table import table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--only", nargs="+", help="rows by number or by a part of their names")
    parser.add_argument("--list", action="store_true", help="only print the rows")
    parser.add_argument("--tiny", action="store_true", help="small sizes on the CPU")
    parser.add_argument("--steps", type=int, help="measured steps, in place of each row's own number")
    parser.add_argument("--deadline", type=float, default=1e9, help="begin no row that would end after so many seconds")
    parser.add_argument("--profile", action="store_true", help="a page a row: kernels, idle time, longest gaps")
    parser.add_argument("--commit", help="of what is measured, where the tree came without its history")
    parser.add_argument("--until", type=float, default=float("inf"), help=argparse.SUPPRESS)
    parser.add_argument("--here", type=int, nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.list:
        print("\n".join(f"{number:3d}  {row.seconds:4d} s  {row.name}" for number, row in enumerate(ROWS)))
        return 0
    if given.here is not None:
        return run_here(given.here, given)
    more = [*(["--tiny"] if given.tiny else []), *(["--steps", str(given.steps)] if given.steps else []),
            *(["--commit", given.commit] if given.commit else []), *(["--profile"] if given.profile else [])]
    run_rows(chosen(ROWS, given.only), given.results, more, time.time() + given.deadline)
    print(table(given.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
