"""The figures of a preflight, and their words."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.dtypes import dtype_name
from training.estimating.disk_estimate import Disk
from training.estimating.memory_estimate import CONTEXT, GIB, Memory, Saving
from training.estimating.step_time import KNOWN_RATE, KNOWN_RATE_NAME, Size, Speed
from training.estimating.trial import Recipe
from training.telling.reports import duration

_SHOWN = 8
_TERA = 1e12


@dataclass(frozen=True)
class Room:
    """Memory that a run may take."""

    bytes: int
    name: str
    is_whole_device: bool = False
    """Whether the CUDA context must fit into it too."""


@dataclass(frozen=True)
class ValidationCost:
    """Work of the measurements on held-out clips."""

    passes: int
    """Forward passes of one measurement, over all processes."""
    times: int
    """Measurements of the run."""
    flops: float
    """Operations of one measurement in one process."""


@dataclass(frozen=True)
class Figures:
    """All that is known of a run before it begins."""

    model: str
    recipe: Recipe
    memory: Memory
    largest: Size
    """The batch that decides memory."""
    sizes: tuple[Size, ...]
    """Of an epoch's batches."""
    room: Room | None
    speed: Speed | None
    """None where the run's device is not here."""
    steps: int
    """Optimiser steps that are left."""
    epochs: int
    accumulation: int
    processes: int
    batches_per_epoch: int
    validation: ValidationCost | None
    disk: Disk

    def asked(self, memory: Memory) -> int:
        """What `memory` comes to where `room` was read."""
        return memory.on_device if self.room is not None and self.room.is_whole_device else memory.reserved

    @property
    def is_too_much(self) -> bool:
        """Whether the memory that is there will not do."""
        return self.room is not None and self.asked(self.memory) > self.room.bytes

    @property
    def step_flops(self) -> float:
        """Operations of an optimiser step of one process, averaged over the epoch's batches."""
        total = sum(size.count for size in self.sizes)
        return self.accumulation * sum(size.step_flops(self.recipe) * size.count for size in self.sizes) / total

    @property
    def train_s(self) -> float | None:
        """Seconds of all steps."""
        return None if self.speed is None else self.steps * self.speed.step_s(self.accumulation)

    @property
    def validation_s(self) -> float | None:
        """Seconds of all measurements."""
        if self.speed is None or self.validation is None:
            return None
        return self.validation.times * self.validation.flops * self.speed.forward_s_per_flop


def as_text(figures: Figures) -> str:
    """The table."""
    rows = ["preflight (estimates; docs/preflight.md says how they are made)", f"  {figures.model}",
            *_batches(figures), *_memory(figures), *_time(figures), *_disk(figures.disk)]
    return "\n".join(rows)


def options_text(figures: Figures, options: Sequence[Saving]) -> str:
    """What would make it fit, where it does not."""
    assert figures.room is not None
    asked, there = figures.asked(figures.memory), figures.room.bytes
    lines = [f"preflight: the run needs {_gib(asked)} and there are {_gib(there)} ({figures.room.name}): it will "
             "probably run out of memory. What would help:"]
    for one in options:
        if one.memory is None:
            lines.append(f"  {one.option}: just fits; longer clips are shown from their start")
            continue
        needs = figures.asked(one.memory)
        verdict = "fits" if needs <= there else "not enough"
        lines.append(f"  {one.option}: {_gib(needs)}, saves {_gib(asked - needs)} ({verdict})")
    lines.append("  fewer or shorter frames in the dataset, a lower resolution or batch size (cache again)")
    return "\n".join(lines)


def _batches(figures: Figures) -> list[str]:
    largest, more = figures.largest, len(figures.sizes) - _SHOWN
    shown = ", ".join(f"{size.name}: {size.count}" for size in figures.sizes[:_SHOWN])
    return [f"  largest batch: {largest.name}, {largest.tokens:,} tokens a sample",
            f"  batches of the first epoch: {shown}" + (f" and {more} more sizes" if more > 0 else "")]


def _memory(figures: Figures) -> list[str]:
    memory, recipe = figures.memory, figures.recipe
    kept = "checkpointing on" if recipe.checkpointing else "no checkpointing"
    base = dtype_name(recipe.dtype) + (" and float8" if recipe.fp8 is not None else "")
    note = f" ({memory.optimizer_note})" if memory.optimizer_note else ""
    rows = [_row(f"base weights, {base}", memory.base), _row("LoRA and conditions, float32", memory.network),
            _row("gradients, float32", memory.gradients)]
    if memory.average:
        rows.append(_row("average of the trained weights", memory.average))
    rows += [_row(f"state of {recipe.optimizer_type}{note}", memory.optimizer),
             _row(f"activations of the largest batch, {kept}", memory.activations)]
    if memory.is_gpu:
        rows += [_row("workspaces of the GPU's libraries", memory.workspaces),
                 _row("= peak that torch will report", memory.allocated),
                 _row("margin: holes in torch's memory", memory.crumbs),
                 _row("margin: CUDA context and kernels", CONTEXT), _row("= on the card (nvidia-smi)",
                                                                         memory.on_device)]
    else:
        rows.append(_row("= tensors at the peak", memory.tensors))
    title = "memory of each GPU" if memory.is_gpu else "memory on the CPU, beside Python and its libraries"
    if figures.room is None:
        verdict = "no GPU is here to compare with (--preflight_vram 24 compares with 24 GiB)"
    else:
        verdict = (f"{_gib(figures.room.bytes)} {figures.room.name}: "
                   + ("NOT ENOUGH" if figures.is_too_much else "enough"))
    return [f"  {title}", *rows, f"    {verdict}"]


def _time(figures: Figures) -> list[str]:
    rows = ["  time", f"    {figures.steps:,} steps left; epochs: {figures.epochs}, batches in each: "
            f"{figures.batches_per_epoch}, processes: {figures.processes}"]
    tera = figures.step_flops / _TERA
    work = f"{tera:,.0f}" if tera >= 10 else f"{tera:.3g}"
    measured, validation = figures.speed, figures.validation
    if measured is None:
        rows += [f"    a step: {work} TFLOP; how long that takes is not known here, because the device is not",
                 f"    at {KNOWN_RATE_NAME}: {figures.step_flops / KNOWN_RATE:.2f} s a step, "
                 f"{duration(figures.steps * figures.step_flops / KNOWN_RATE)} for all"]
        if validation is not None:
            rows.append(f"    validation: {validation.times} times {validation.passes} forward passes beside that")
        return rows
    step_s = measured.step_s(figures.accumulation)
    rows += [f"    {size.name}: {timing.batch_s:.3f} s forward and backward (measured on "
             f"{len(figures.memory.portions.blocks)} of {figures.recipe.variant.layers} blocks here)"
             for size, timing in measured.measured]
    if measured.share < 1:
        rows.append(f"    the other sizes ({1 - measured.share:.0%} of the batches) follow by their operations")
    rows.append(f"    a step: {step_s:.3f} s on average, {work} TFLOP, {tera / step_s:,.1f} TFLOP/s; the optimiser "
                f"takes {measured.optimizer_s:.3f} s of it")
    total = figures.train_s or 0.0
    if validation is not None and figures.validation_s is not None:
        rows.append(f"    validation: {validation.times} times {validation.passes} forward passes: "
                    f"{duration(figures.validation_s)}")
        total += figures.validation_s
    rows.append(f"    all of it: {duration(total)}, without loading, saving and exchange between processes")
    return rows


def _disk(disk: Disk) -> list[str]:
    states = disk.states_kept
    return ["  disk of --output_dir",
            f"    a checkpoint {_size(disk.checkpoint)}: at most {disk.counts.most} at once, {disk.counts.left} in the "
            "end",
            f"    a state to go on from {_size(disk.state)}: {states} stay, one more while a new one is written",
            f"    = {_size(disk.needed)} at most; free there: {_size(disk.free)}: "
            + ("enough" if disk.needed <= disk.free else "NOT ENOUGH")]


def _row(name: str, count: int) -> str:
    return f"    {name:<52}{count / GIB:>10.3f} GiB"


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


def _size(count: int) -> str:
    return _gib(count) if count >= GIB else f"{count / 2**20:.1f} MiB"
