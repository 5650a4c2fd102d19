"""Rows of `python -m benchmarks`: longer chunks of the VAE, and clips from worker processes."""

from collections.abc import Callable
from pathlib import Path
import shutil

import torch

from benchmarks.faults.runs import TOML
from dataset.config import load_dataset_config
from dataset.open import open_dataset
from dataset.spans import Span
from precompute.loading import ClipRequest, PlainLoader, open_loader
from wan.memory.vae_speed import VaeSpeed, slow_down, speed_up
from wan.modules.vae import Vae
from wan.modules.vae_coders import VaeShape

Compare = Callable[[Callable[[], object], Callable[[], object]], tuple[float, float]]
DEMO = Path(__file__).resolve().parent.parent / "examples" / "demo" / "clips"
CLIPS, FRAMES = 6, 9


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


def loader_cost(compare: Compare, folder: Path) -> tuple[str, float, float]:
    """The shipped clips, decoded and brought to 832x480 in two workers, against the same here."""
    wanted = shipped_clips(folder)
    plain = PlainLoader()
    with open_loader(2) as loader:
        return (f"{CLIPS} clips of {FRAMES} frames, enlarged to 832x480, from two workers / read here",
                *compare(lambda: [None for _ in plain.load(wanted)], lambda: [None for _ in loader.load(wanted)]))


def shipped_clips(folder: Path) -> list[ClipRequest]:
    """Some of the demo's clips, to be read at a size that takes as long as real ones."""
    (folder / "clips").mkdir(parents=True)
    for number in range(CLIPS):
        for suffix in (".mp4", ".txt"):
            shutil.copy(DEMO / f"head_{number:03d}{suffix}", folder / "clips")
    (folder / "data.toml").write_text(TOML.format(folder=folder.as_posix()), encoding="utf-8")
    dataset = open_dataset(load_dataset_config(folder / "data.toml"))
    return [ClipRequest(item, Span(0, FRAMES, 832, 480), frozenset({"frames"})) for item in dataset.items]
