"""Ratios that need no GPU: each path beside our own plain one, in one run, interleaved, medians."""

from collections.abc import Callable
from pathlib import Path
import statistics
import tempfile
import time

import torch

from benchmarks.cpu_blocks import graph_rows, kept_rows
from benchmarks.cpu_caching import chunk_difference, loader_cost
from benchmarks.cpu_loader import STEP_S, loader_rate
from common.features import FeatureBatch
from common.tensorfile import load_tensors, save_tensors
from wan.conditions.registry import build_condition
from wan.modules.dit import WanDiT
from wan.variants import Variant

ROUNDS = 9
SMALL = Variant(dim=384, ffn_dim=1536, layers=6, heads=3, in_channels=16, out_channels=16, text_dim=64)
LATENTS = (1, 16, 5, 16, 24)


def compare(plain: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    """Median seconds of both, measured in turn so that a busy machine disturbs both alike."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in (plain, other):
        function()
    for _ in range(ROUNDS):
        for function, column in zip((plain, other), times, strict=True):
            started = time.perf_counter()
            function()
            column.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def small_dit() -> WanDiT:
    """A DiT of 14 million parameters with random weights."""
    torch.manual_seed(0)
    return WanDiT(SMALL).eval().requires_grad_(False)


def condition_cost() -> tuple[str, float, float]:
    """A forward with the audio condition against one without any."""
    dit, text = small_dit(), [torch.randn(20, SMALL.text_dim)]
    latents, timestep = torch.randn(LATENTS), torch.tensor([500.0])
    condition = build_condition("omniavatar_add", {"audio_states": "3", "audio_width": "32"}, SMALL)
    frames = 4 * (LATENTS[2] - 1) + 1
    mask = torch.zeros(1, 1, *LATENTS[2:])
    mask[:, :, 0] = 1
    batch = FeatureBatch(
        features={"audio": {"states": torch.randn(1, frames, 3, 32)},
                  "reference_latents": {"latents": torch.randn(1, 16, 1, *LATENTS[3:])}},
        frames=frames, fps=25.0, given_latents=latents, given_mask=mask, first_is_still=torch.tensor([True]))
    grid = (LATENTS[2], LATENTS[3] // 2, LATENTS[4] // 2)
    with torch.no_grad():
        states = {"omniavatar_add": condition.prepare(batch, grid)}
        return ("forward with the audio condition / without", *compare(
            lambda: dit(latents, timestep, text), lambda: dit(latents, timestep, text, conditions=states)))


def lora_cost() -> tuple[str, float, float]:
    """A training step's forward and backward with LoRA attached, checkpointed against not."""
    from networks.lora_wan import create_network
    from wan.memory.checkpointing import disable_checkpointing, enable_checkpointing

    dit = small_dit()
    network = create_network(dit, dim=8, alpha=8)
    network.attach()
    latents, timestep, text = torch.randn(LATENTS), torch.tensor([500.0]), [torch.randn(20, SMALL.text_dim)]

    def step() -> None:
        dit(latents, timestep, text).square().mean().backward()

    def checkpointed() -> None:
        enable_checkpointing(dit)
        step()
        disable_checkpointing(dit)
    return ("LoRA step, every block checkpointed / none", *compare(step, checkpointed))


def loading_cost(folder: Path) -> tuple[str, float, float]:
    """Streaming weights on to a meta-built model against reading all, building and copying."""
    import wan

    path = folder / "dit.safetensors"
    save_tensors(path, {key: value.to(torch.bfloat16) for key, value in small_dit().state_dict().items()}, {})

    def plain() -> None:
        tensors, _ = load_tensors(path)
        WanDiT(SMALL).load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    return ("wan.load_dit / read, build, copy", *compare(plain, lambda: wan.load_dit(path, dtype=torch.float32)))


def batch_loading_cost(folder: Path) -> tuple[str, float, float]:
    """Reading one clip's span of a cached sound of 60 s against reading the whole entry."""
    from safetensors import safe_open

    path = folder / "audio.safetensors"
    save_tensors(path, {"states": torch.randn(1500, 13, 768)}, {})

    def span() -> None:
        with safe_open(path, framework="pt") as file:
            file.get_slice("states")[700:781].sum()
    # The sum makes the pages be read; opening alone only maps them.
    return ("span of a cached sound / the whole entry", *compare(lambda: load_tensors(path)[0]["states"].sum(), span))


def main() -> None:
    """Measure and print the tables."""
    with tempfile.TemporaryDirectory() as name:
        rows = [condition_cost(), lora_cost(), loading_cost(Path(name)), batch_loading_cost(Path(name)),
                loader_cost(compare, Path(name) / "loader")]
        rate = loader_rate(Path(name) / "caches")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {ROUNDS}\n")
    print("| what / plain path | plain s | this s | ratio |\n|---|---|---|---|")
    for what, plain, other in rows:
        print(f"| {what} | {plain:.4f} | {other:.4f} | {other / plain:.2f} |")
    print("\n| kept for the backward pass | bytes a token and channel, bf16 uncompiled | / full |\n|---|---|---|")
    for policy, kept, share in kept_rows():
        print(f"| {policy} | {kept:.1f} | {share:.1f} |")
    print("\n| compiled blocks | breaks | left uncompiled | graphs of each bucket | of second steps |\n"
          "|---|---|---|---|---|")
    for row in graph_rows():
        print(f"| {row.what} | {row.breaks} | {row.uncompiled} | {', '.join(map(str, row.by_bucket))} | {row.later} |")
    print(f"\nbatches from caches: {rate:.0f} a second; a step of {STEP_S} s asks for {1 / STEP_S:.2f}")
    print(f"VAE chunks in float64, largest difference: {chunk_difference():.1e}")
