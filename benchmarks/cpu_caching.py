"""Rows of `python -m benchmarks`: longer chunks of the VAE, and clips from worker processes."""

from collections.abc import Callable

import torch

from benchmarks.made_clips import MadeClip, make_clip
from precompute.loading import WorkerLoader
from wan.memory.vae_speed import VaeSpeed, slow_down, speed_up
from wan.modules.vae import Vae
from wan.modules.vae_coders import VaeShape

Compare = Callable[[Callable[[], object], Callable[[], object]], tuple[float, float]]
CLIPS = 6


def small_vae() -> Vae:
    """A VAE of a sixth of the released width with random weights."""
    torch.manual_seed(0)
    return Vae(VaeShape(width=16)).eval().requires_grad_(False)


def chunk_difference() -> float:
    """Largest difference, in float64, between chunks of one latent frame and of 2, 3 and 4; encoded and decoded."""
    vae = small_vae().double()
    video = torch.rand(1, 3, 29, 32, 32, dtype=torch.float64) * 2 - 1
    latents = vae.encode(video)
    frames, largest = vae.decode(latents), 0.0
    for length in (2, 3, 4):
        speed_up(vae, VaeSpeed(length, length, budget_bytes=1 << 40))
        for found, expected in ((vae.encode(video), latents), (vae.decode(latents), frames)):
            largest = max(largest, (found - expected).abs().max().item())
        slow_down(vae)
    return largest


def chunk_cost(compare: Compare) -> tuple[str, float, float]:
    """Encoding 17 frames in calls of sixteen frames against four."""
    plain, fast = small_vae(), speed_up(small_vae(), VaeSpeed(budget_bytes=1 << 40))
    video = torch.rand(1, 3, 17, 32, 48) * 2 - 1
    return ("VAE, 16 frames a call / 4", *compare(lambda: plain.encode(video), lambda: fast.encode(video)))


def loader_cost(compare: Compare) -> tuple[str, float, float]:
    """Clips of 81 frames of 480x832, made in two workers and brought here, against made here."""
    wanted = [MadeClip(number, 81, 480, 832) for number in range(CLIPS)]
    loader = WorkerLoader(2, reader=make_clip)
    try:
        plain, other = compare(lambda: [make_clip(one) and None for one in wanted],
                               lambda: [None for _ in loader.load(wanted)])
        return (f"{CLIPS} clips of 97 MB from two workers / made here", plain, other)
    finally:
        loader.close()
