"""What `benchmarks.vae_speed` tells beside times: where they go by kernel, and how fast each form of convolution is."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
import torch.nn.functional as F

from wan.memory.vae_speed import kernels_tried

if TYPE_CHECKING:
    from benchmarks.vae_speed import Bench

TOP = 25
KINDS = (("convolutions", ("conv", "cudnn", "xmma", "implicit", "fprop", "cutlass", "sm80_", "sm90_", "nvjet", "gemm")),
         ("between them", ("_finish", "triton")), ("attention", ("fmha", "flash", "softmax", "attention")),
         ("copies", ("copy", "memcpy", "memset", "cat", "pad", "fill", "nchwtonhwc", "nhwctonchw")))
"""Kinds of kernels by what stands in their names, in lower case; the first that fits counts."""


def profile(bench: "Bench", what: str, run: Callable[[], object]) -> None:
    """The kernels of one run by time, and the shares of kinds; waiting is what the kernels leave of the wall clock."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    on_cpu = bench.device == "cpu"
    run()
    bench.sync()
    with recorded(activities=[ProfilerActivity.CPU] if on_cpu else [ProfilerActivity.CPU, ProfilerActivity.CUDA],
                  acc_events=True) as record:
        run()
        bench.sync()
    rows = []
    for event in record.key_averages():
        if on_cpu:
            rows.append((event.self_cpu_time_total / 1e3, event.count, event.key))
        elif event.device_type == torch.autograd.DeviceType.CUDA:
            rows.append((event.self_device_time_total / 1e3, event.count, event.key))
    rows.sort(reverse=True)
    total = sum(row[0] for row in rows) or 1.0
    print(f"\n## {what}: {total:.1f} ms in {sum(row[1] for row in rows)} kernels\n\n| ms | % | calls | kernel |\n"
          "|---|---|---|---|")
    for ms, count, name in rows[:TOP]:
        print(f"| {ms:.2f} | {100 * ms / total:.1f} | {count} | {name[:150]} |")
    shares: dict[str, float] = {}
    for ms, _, name in rows:
        kind = next((kind for kind, parts in KINDS if any(part in name.lower() for part in parts)), "other")
        shares[kind] = shares.get(kind, 0.0) + ms
    bench.add(what="profile", way=what, kernels_ms=total, **{kind: f"{ms:.1f} ms" for kind, ms in shares.items()})


def convolutions(bench: "Bench") -> None:
    """The VAE's convolutions by themselves, tuned: as they are called, and what else might compute the same."""
    for name, flop, run in _forms(bench):
        try:
            with torch.no_grad(), kernels_tried():
                seconds = bench.timed(run)
            bench.add(what="convolution", way=name, ms=1e3 * seconds, tflops=flop / seconds / 1e12)
        except Exception as error:  # noqa: BLE001 - the other rows are wanted all the same
            bench.add(what="convolution", way=name, failed=str(error).partition("\n")[0])


def _forms(bench: "Bench") -> Iterator[tuple[str, float, Callable[[], Any]]]:
    _, height, width = bench.size
    base = bench.shape.width
    dtype = torch.float32 if bench.device == "cpu" else torch.bfloat16

    def made(*shape: int, last: bool = True) -> Tensor:
        x = torch.randn(shape, device=bench.device, dtype=dtype)
        form = torch.channels_last_3d if len(shape) == 5 else torch.channels_last
        return x.contiguous(memory_format=form) if last else x

    for channels, out, frames, scale in ((base, base, 16, 1), (2 * base, 2 * base, 16, 2), (4 * base, 4 * base, 8, 4),
                                         (4 * base, 4 * base, 4, 8), (3, base, 16, 1), (8, base, 16, 1),
                                         (base, 3, 16, 1), (base, 8, 16, 1)):
        high, wide = height // scale, width // scale
        flop = 2.0 * 27 * channels * out * frames * high * wide
        x, weight = made(1, channels, frames + 2, high, wide), made(out, channels, 3, 3, 3)
        name = f"{channels} to {out}, {frames}x{high}x{wide}"
        yield name, flop, lambda x=x, weight=weight: F.conv3d(x, weight, padding=(0, 1, 1))
        if channels != out:
            continue
        padded = made(1, channels, frames + 2, high + 2, wide + 2)
        yield f"{name}, padded before", flop, lambda x=padded, weight=weight: F.conv3d(x, weight)
        if channels == base:
            bias = made(out, 1, 1, 1).flatten()
            yield f"{name}, with bias", flop, lambda x=x, w=weight, b=bias: F.conv3d(x, w, b, padding=(0, 1, 1))
        if channels <= 2 * base:
            x, weight = made(frames, 3 * channels, high, wide), made(out, 3 * channels, 3, 3)
            yield f"{name}, as 2D of 3 frames each", flop, lambda x=x, w=weight: F.conv2d(x, w, padding=1)
            x, weight = made(frames, channels, high, wide), made(3 * out, channels, 3, 3)
            yield f"{name}, as 2D to 3 frames each", flop, lambda x=x, w=weight: F.conv2d(x, w, padding=1)
