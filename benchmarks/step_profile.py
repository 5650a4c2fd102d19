"""Where a step's time goes: kernels by kind and by name, and the time in which the GPU has nothing to do."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STEPS = 2
TOP = 60
KINDS = (("attention, forward", ("fprop", "flash_fwd", "flash_attncuteflash_fwd")),
         ("attention, backward", ("bprop", "flash_bwd", "flash_attncuteflash_bwd", "dot_do_o", "convert_dq")),
         ("float8 products", ("qqtst", "e4m3")), ("passes between", ("triton",)), ("low-rank sums", ("_add",)),
         ("norms and scaling by rows", ("_layer_norm", "_rms_norm", "_gelu", "_quantise")),
         ("products", ("nvjet", "gemm", "cutlass")), ("copies", ("memcpy", "memset", "copy")))
"""Kinds of kernels by what stands in their names; the first that fits counts."""
SHORT_GAPS = (5, 20, 100, 1000)
"""Microseconds: bounds by which gaps are sorted. The shortest ones lie between any two kernels that follow each other;
in long ones the host had nothing queued."""
Interval = tuple[int, int, str]
"""(begin, end in ns, name) of a kernel or copy."""


def device_intervals(profiler: Any) -> list[Interval]:
    """What the GPU did under a stopped `torch.profiler.profile`."""
    import torch

    return [(event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
            for event in profiler.profiler.kineto_results.events()
            if event.device_type() == torch.autograd.DeviceType.CUDA and "sync" not in event.name().lower()]


def idle_of(intervals: Sequence[Interval], gaps_told: int = 5) -> tuple[float, float, list[tuple[float, str]]]:
    """(share of the time without work, ms from first to last, the longest gaps in ms with what lies beside them)."""
    ordered = sorted(intervals)
    begin, end, last = ordered[0]
    idle, gaps = 0, []
    for start, stop, name in ordered[1:]:
        if start > end:
            idle += start - end
            gaps.append(((start - end) / 1e6, f"{last[:40]} … {name[:40]}"))
        if stop > end:
            end, last = stop, name
    return idle / max(1, end - begin), (end - begin) / 1e6, sorted(gaps, reverse=True)[:gaps_told]


def gaps_by_length(intervals: Sequence[Interval]) -> list[tuple[str, int, float]]:
    """(length, how many, ms in all) of the times without work, by SHORT_GAPS."""
    gaps = [1e3 * ms for ms, _ in idle_of(intervals, len(intervals))[2]]  # µs
    found, least = [], 0.0
    for most in (*SHORT_GAPS, float("inf")):
        these = [one for one in gaps if least < one <= most]
        name = f"over {least:g} us" if most == float("inf") else f"to {most:g} us"
        found.append((name, len(these), sum(these) / 1e3))
        least = most
    return found


def kind_of(name: str) -> str:
    """Which kind of work a kernel is."""
    return next((kind for kind, parts in KINDS if any(part in name.lower() for part in parts)), "other")


def profile_steps(step: Callable[[], object], folder: Path, title: str) -> dict[str, Any]:
    """Profile some steps on the GPU, write a page into `folder`, and return milliseconds a step by kind and idle."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    intervals = device_intervals(profiler)
    idle, span, gaps = idle_of(intervals)
    name = "".join(letter if letter.isalnum() else "-" for letter in title)
    (folder / f"profile-{name}.md").write_text(page(title, intervals), encoding="utf-8")
    return {"idle": idle, "span_ms": span / STEPS, "by_kind_ms": by_kind(intervals),
            "idle_by_length": gaps_by_length(intervals),
            "gaps": [f"{ms:.2f} ms {where}" for ms, where in gaps]}


def by_kind(intervals: Sequence[Interval], steps: int = STEPS) -> dict[str, float]:
    """Milliseconds a step of each kind, the longest first."""
    sums: Counter[str] = Counter()
    for begin, end, name in intervals:
        sums[kind_of(name)] += end - begin
    return {kind: round(nanoseconds / 1e6 / steps, 2) for kind, nanoseconds in sums.most_common()}


def page(title: str, intervals: Sequence[Interval], steps: int = STEPS) -> str:
    """A Markdown page: kinds, idle time with its longest gaps, and the longest kernels, a step."""
    idle, span, gaps = idle_of(intervals)
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for begin, end, name in intervals:
        times[name] += end - begin
        calls[name] += 1
    kinds = by_kind(intervals, steps)
    lines = [f"# {title}", "", f"{span / steps:.1f} ms a step under the profiler, {100 * idle:.2f} % of it idle.", "",
             "| kind | ms |", "|---|---|", *(f"| {kind} | {ms:.2f} |" for kind, ms in kinds.items()),
             "", "| gaps | number | ms |", "|---|---|---|",
             *(f"| {name} | {count / steps:g} | {ms / steps:.2f} |" for name, count, ms in gaps_by_length(intervals)),
             "", "Longest gaps:", "", *(f"- {ms:.2f} ms {where}" for ms, where in gaps), "",
             "| kernel | calls | ms |", "|---|---|---|"]
    lines += [f"| `{name[:140]}` | {calls[name] / steps:g} | {nanoseconds / 1e6 / steps:.3f} |"
              for name, nanoseconds in times.most_common(TOP)]
    return "\n".join(lines) + "\n"
