"""The audio conditions on random weights: training step with and without, passes of guidance, memory over chunks.

    python -m benchmarks.audio_conditions WORK_DIR --task t2v-14B --parts write guidance long train --result FILE.md

Writes the weights (28.6 GB for 14B; the text encoder has one layer, it is not measured) and a sound of 30 s of noise
first. `guidance` generates with 1, 2 and 3 passes a step, `long` half a minute of video chunk by chunk, both through
the generation that users call; `train` times forward, backward and AdamW of a LoRA step, interleaved with nothing,
median of the steps after the first.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
import subprocess
import sys
import time
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from common.features import FeatureBatch  # noqa: E402
from common.tensorfile import save_tensors  # noqa: E402
from common.timebase import video_frame_count  # noqa: E402
from wan.conditions.given_frames import with_first_frame_given  # noqa: E402
from wan.conditions.registry import build_condition  # noqa: E402

DESIGNS: dict[str, tuple[str, ...]] = {
    "none": (),
    "omniavatar_add": ("omniavatar_add",),
    "gated_lite": ("gated_lite", "reference_channels"),
    "frame_xattn": ("frame_xattn", "reference_channels"),
}
RANK = 32
SOUND_S = 30
STATES, WIDTH = 13, 768
"""Of wav2vec2-base."""


@dataclass(frozen=True)
class Work:
    """Where things are, and how large the picture is."""

    folder: Path
    size: tuple[int, int]
    """Height and width."""

    @property
    def weights(self) -> Path:
        """Folder of the DiT's shards and the other models."""
        return self.folder / "weights"

    @property
    def sound(self) -> Path:
        """The driving sound."""
        return self.folder / "noise.wav"

    @property
    def lora(self) -> Path:
        """An omniavatar_add condition with small random weights."""
        return self.folder / "omniavatar_add.safetensors"

    @property
    def face(self) -> Path:
        """The picture."""
        return self.folder / "face.png"


def write(work: Work, task: str) -> None:
    """Weights, sound, picture, condition."""
    import numpy as np
    from PIL import Image
    import soundfile

    from benchmarks.random_weights import SIZES
    from networks.condition_weights import condition_tensors
    from networks.metadata import Origin
    from wan.variants import Variant

    if not (work.weights / "done").exists():
        subprocess.run([sys.executable, "-m", "benchmarks.random_weights", str(work.weights), "--task", task,
                        "--text_layers", "1"], check=True, cwd=ROOT)
        (work.weights / "done").touch()
    random = np.random.default_rng(0)
    swell = np.abs(np.sin(np.arange(SOUND_S * 16_000) * 2 * np.pi * 4 / 16_000))
    soundfile.write(work.sound, 0.2 * swell * random.standard_normal(SOUND_S * 16_000), 16_000)
    Image.fromarray(random.integers(0, 255, (*work.size, 3), dtype=np.uint8)).save(work.face)
    condition = build_condition("omniavatar_add", {}, Variant(**SIZES[task]))
    torch.manual_seed(0)
    for parameter in condition.parameters():
        parameter.data.normal_(std=0.01)
    origin = Origin(conditions={"omniavatar_add": condition.settings_text()}, fps=25.0, picture_mode="cover")
    save_tensors(work.lora, condition_tensors({"omniavatar_add": condition}), origin.text())


def request_of(work: Work, task: str, **settings: Any) -> Any:
    """A request for the written files."""
    from inference import GenerationRequest

    weights = work.weights
    return GenerationRequest(
        task=None if task == "tiny" else task, dit=weights, vae=weights / "Wan2.1_VAE.pth",
        t5=weights / "models_t5_umt5-xxl-enc-bf16.pth",
        wav2vec=weights / "wav2vec2-base-960h", lora_weight=[work.lora], prompt="a person speaks", seed=1,
        image_path=work.face, audio=work.sound, video_size=work.size, sample_solver="euler", **settings)


def seconds_of_steps(pipeline: Any, request: Any) -> list[float]:
    """Seconds of each solver step but the first."""
    moments: list[float] = []

    def watch(step: Any, sample: Tensor) -> None:
        _finish()
        moments.append(time.perf_counter())

    prepared = pipeline.prepare(pipeline.plan(request))
    pipeline.sample(prepared, watch=watch)
    return [after - before for before, after in zip(moments, moments[1:], strict=False)]


def guidance(work: Work, task: str, dit: Any, steps: int) -> Iterator[tuple[str, str]]:
    """1, 2 and 3 passes a step on a chunk of OmniAvatar's token budget."""
    from inference import load_pipeline

    plain = 0.0
    for passes, scales in ((1, {"guidance_scale": 1.0}), (2, {"guidance_scale": 4.5}),
                           (3, {"guidance_scale": 4.5, "audio_scale": 3.0})):
        request = request_of(work, task, infer_steps=steps, video_length=73, **scales)
        pipeline = load_pipeline(request, dit=dit)
        seconds = median(seconds_of_steps(pipeline, request))
        plain = plain or seconds
        yield f"generation, {passes} pass{'es' if passes > 1 else ''}, 73 frames: s a step", (
            f"{seconds:.3f} ({seconds / plain:.2f} x one pass)")


def long(work: Work, task: str, dit: Any, steps: int, chunk: int | None) -> Iterator[tuple[str, str]]:
    """Half a minute, chunk by chunk, written to a file; peak memory of each chunk."""
    from inference import load_pipeline
    from tools.proof.memory import ChunkMemory

    request = request_of(work, task, infer_steps=steps, guidance_scale=1.0, save_path=work.folder / "long.mp4",
                         chunk_frames=chunk)
    pipeline = load_pipeline(request, dit=dit)
    started = time.perf_counter()
    with ChunkMemory(str(pipeline.models.device)) as memory:
        result = pipeline.generate(request, watch=memory.watch)
    seconds = time.perf_counter() - started
    peaks = [f"{peak / 1024:.3f}" for peak in memory.peaks]
    yield (f"{SOUND_S} s of sound in {len(peaks)} chunks, {steps} steps of one pass, with decode, encode and writing",
           f"{seconds:.0f} s; {result.path}")
    yield "peak memory of each chunk, GiB", " ".join(peaks)
    yield "chunk 8 / chunk 2", f"{memory.peaks[min(7, len(peaks) - 1)] / memory.peaks[1]:.4f}"


def train(work: Work, dit: Any, latent_frames: int, steps: int, designs: list[str]) -> Iterator[tuple[str, str]]:
    """A LoRA step with each design beside one without."""
    from wan.memory.checkpointing import enable_checkpointing

    enable_checkpointing(dit)
    plain = 0.0
    for design in designs:
        _free()
        seconds, peak = _train_one(work, dit, latent_frames, steps, DESIGNS[design])
        plain = plain or seconds
        yield f"training step, {video_frame_count(latent_frames)} frames, {design}: s, GiB", (
            f"{seconds:.3f} ({seconds / plain:.3f} x {designs[0]}), {peak:.1f}")


def _train_one(work: Work, dit: Any, latent_frames: int, steps: int, names: tuple[str, ...]) -> tuple[float, float]:
    from networks.lora_wan import create_network
    from training.job import JobSettings, VideoJob
    from training.step import draw
    from training.timesteps import TimestepSettings

    torch.manual_seed(0)
    conditions = {name: build_condition(name, {}, dit.variant) for name in names}
    network = create_network(dit, dim=RANK, alpha=RANK, conditions=conditions)
    network.to(dit.device).attach().train()
    timesteps = TimestepSettings(timestep_sampling="shift", discrete_flow_shift=5.0)
    job = VideoJob(dit, network, JobSettings(0, timesteps), epoch_batches=_none, batches_per_epoch=1,
                   samples_per_epoch=1)
    latents, features = _inputs(work, dit, latent_frames, bool(names))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-5, fused=True)
    times = []
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    for position in range(steps):
        _finish()
        started = time.perf_counter()
        (result,) = job.steps(latents, features, draw([position], latents.shape[1:], seed=0, epoch=1), timesteps)
        result.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _finish()
        times.append(time.perf_counter() - started)
    network.detach()
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return median(times[1:]), peak


def _inputs(work: Work, dit: Any, latent_frames: int, hears: bool) -> tuple[Tensor, FeatureBatch]:
    height, width = (n // 8 for n in work.size)
    frames, device = video_frame_count(latent_frames), dit.device
    latents = torch.randn(1, 16, latent_frames, height, width, device=device)
    features = {"text": {"hidden": [torch.randn(40, dit.variant.text_dim)]}}
    if hears:
        features |= {"audio": {"states": torch.randn(1, frames, STATES, WIDTH)},
                     "reference_latents": {"latents": torch.randn(1, 16, 1, height, width)}}
    batch = FeatureBatch(features=features, frames=frames, fps=25.0).to(device)
    if hears:
        batch = with_first_frame_given(batch, latents[:, :, :1], latent_frames, torch.tensor([True]))
    return latents, batch


def _none(epoch: int, start: int) -> Any:
    raise AssertionError("the benchmark calls the steps itself")


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _free() -> None:
    from common.devices import free_memory

    free_memory()


def load_dit(work: Work) -> Any:
    """The DiT, frozen, in bfloat16 on the GPU (float32 without one)."""
    import wan

    on_gpu = torch.cuda.is_available()
    return wan.load_dit(work.weights, dtype=torch.bfloat16 if on_gpu else torch.float32,
                        device="cuda" if on_gpu else "cpu").requires_grad_(False)


def main() -> None:
    """Measure the parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--task", default="t2v-14B", choices=("t2v-1.3B", "t2v-14B", "tiny"))
    parser.add_argument("--parts", nargs="+", default=["write", "guidance", "long", "train"])
    parser.add_argument("--designs", nargs="+", choices=list(DESIGNS), default=list(DESIGNS))
    parser.add_argument("--video_size", type=int, nargs=2, default=(480, 832), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--latent_frames", type=int, default=9, help="of the training clips; 9 are 33 frames")
    parser.add_argument("--train_steps", type=int, default=4, help="for each design; the first does not count")
    parser.add_argument("--infer_steps", type=int, default=4, help="for guidance; the first does not count")
    parser.add_argument("--long_steps", type=int, default=2)
    parser.add_argument("--chunk_frames", type=int, help="of `long`, 4n+1 (default: OmniAvatar's token budget)")
    parser.add_argument("--result", type=Path)
    settings = parser.parse_args()
    work = Work(settings.work.resolve(), tuple(settings.video_size))
    work.folder.mkdir(parents=True, exist_ok=True)
    if "write" in settings.parts:
        write(work, settings.task)
    dit = load_dit(work)
    parts: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
        "guidance": lambda: guidance(work, settings.task, dit, settings.infer_steps),
        "long": lambda: long(work, settings.task, dit, settings.long_steps, settings.chunk_frames),
        "train": lambda: train(work, dit, settings.latent_frames, settings.train_steps, settings.designs)}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = [f"{device}, torch {torch.__version__}, {settings.task}, {work.size[0]}x{work.size[1]}", "",
             "| what | figures |", "|---|---|"]
    for name in (name for name in ("guidance", "long", "train") if name in settings.parts):
        for what, figures in parts[name]():
            lines.append(f"| {what} | {figures} |")
            print(lines[-1], flush=True)
            if settings.result:
                settings.result.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
