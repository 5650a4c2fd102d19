"""The commands of a demo, exactly as a user types them: cache, train, generate; printed, timed and run one by one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import shlex
import shutil
import subprocess
import sys
import time

from common.atomic import write_text
from common.errors import ConfigError, UserError
from tools.proof.inputs import Item
from tools.proof.recipe import FPS, SIZE, Recipe

ROOT = Path(__file__).resolve().parents[2]
SET = ROOT / "examples" / "demo"
WEIGHTS = ROOT / "examples" / "tiny-weights"
DIT, VAE, T5, WAV2VEC = (WEIGHTS / name for name in (
    "wan2.1_t2v_tiny.safetensors", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "wav2vec2-base-960h"))
NAME = "talking"
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
"""Memory in large pages: on a CPU the VAE spends a third of its time on handing back small ones. Linux only."""


@dataclass
class Commands:
    """A demo's folder, and the commands that were run in it with their seconds."""

    out: Path
    """Holds the caches, which later runs use again, and `result`."""
    recipe: Recipe
    media: Path = SET
    """Folder with the `clips` to train on and the `unseen` faces and utterances."""
    folder: str = "result"
    """Name of the folder of what one run makes."""
    seconds: list[tuple[str, float]] = field(default_factory=list)

    @property
    def result(self) -> Path:
        """Folder of what one run makes."""
        return self.out / self.folder

    @property
    def dataset(self) -> Path:
        """The dataset TOML."""
        return self.out / "talking.toml"

    def begin(self) -> None:
        """Write the dataset TOML, and clear the results of an earlier demo. ConfigError when they are not a demo's."""
        script = self.result / "commands.sh"
        if self.result.exists() and not script.exists():
            raise ConfigError(f"{self.result} exists and is not the result of an earlier demo. Move it away, or choose "
                              "another --out.")
        shutil.rmtree(self.result, ignore_errors=True)
        write_text(self.dataset, dataset_toml(self.recipe, self.media / "clips", self.out / "cache"))
        write_text(script, "")

    def cache(self) -> None:
        """Encode pictures, captions and sound."""
        import torch

        processes = 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, 8)
        for command in cache_commands(self.dataset, processes):
            self.run(command)

    def train(self, start: Path | None = None) -> None:
        """LoRA and audio condition from zero, or from `start`; the first state is saved too, to compare with."""
        self.run(train_command(self.recipe, self.dataset, self.result / "lora", start))

    def lora(self, when: str) -> Path:
        """The checkpoint of a stage, `before` or `after` training."""
        step = "-step00000000" if when == "before" else ""
        return self.result / "lora" / f"{NAME}{step}.safetensors"

    def generate(self, when: str, items: Sequence[Item]) -> dict[str, Path]:
        """Generate all items with the weights of a stage; item's name → video."""
        prompts, folder = self.result / "prompts.txt", self.result / when
        write_text(prompts, "".join(prompt_line(item) for item in items))
        self.run(generate_command(self.recipe, self.lora(when), prompts, folder))
        videos = {}
        for item in items:
            [made] = folder.glob(f"*_{item.seed}.mp4")
            videos[item.name] = made.rename(folder / f"{item.name}.mp4")
            made.with_suffix(".json").rename(folder / f"{item.name}.json")
        return videos

    def run(self, words: list[str]) -> None:
        """Print a command, run it from the repository's folder. UserError with its exit code when it fails."""
        line = f"python {shlex.join(words)}"
        print(f"\n$ {line}", flush=True)
        with (self.result / "commands.sh").open("a", encoding="utf-8") as script:
            script.write(f"{line}\n")
        pages = LARGE_PAGES if sys.platform == "linux" else {}
        started = time.monotonic()
        code = subprocess.run([sys.executable, *words], cwd=ROOT, env={**pages, **os.environ}).returncode
        self.seconds.append((next(word for word in words if word.endswith(".py")), time.monotonic() - started))
        if code:
            raise UserError(f"this command ended with exit code {code}; its message is above: {line}")


def shown(path: Path) -> str:
    """A path as a user types it from the repository's folder."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


def dataset_toml(recipe: Recipe, clips: Path, cache: Path) -> str:
    """The dataset of the shipped clips, cut as the recipe says."""
    return f"""[general]
resolution = [{SIZE}, {SIZE}]
caption_extension = ".txt"
batch_size = {recipe.batch_size}

[[datasets]]
video_directory = {json.dumps(shown(clips))}
cache_directory = {json.dumps(shown(cache))}
audio = "clip"          # the clip's own sound drives the mouth
target_fps = {FPS}
target_frames = [{recipe.target_frames}]
frame_extraction = "uniform"
frame_sample = {recipe.spans}
reference = "{recipe.reference}"
"""


def launched(processes: int, threads: int) -> list[str]:
    """`accelerate launch` with all that it would else ask for or warn of."""
    return ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--num_machines", "1",
            "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", str(threads)]


def cache_commands(dataset: Path, processes: int) -> list[list[str]]:
    """Encode pictures, captions and sound of the dataset.

    On a CPU the VAE's small convolutions gain little from threads: a process for each core is faster.
    """
    data = ["--dataset_config", shown(dataset)]
    return [[*(launched(processes, 1) if processes > 1 else []), "cache_latents.py", *data, "--vae", shown(VAE)],
            ["cache_text_encoder_outputs.py", *data, "--t5", shown(T5)],
            ["cache_audio_features.py", *data, "--wav2vec", shown(WAV2VEC)]]


def train_command(recipe: Recipe, dataset: Path, out: Path, start: Path | None = None) -> list[str]:
    """Train from zero or from a file, with held-out clips for the audio-shift gap where the recipe keeps some."""
    validation: dict[str, str | int | float] = {
        "--validation_count": recipe.validation_count, "--validate_every_n_steps": recipe.validate_every}
    size: dict[str, str | int | float] = {
        "--network_dim": recipe.network_dim, "--network_alpha": recipe.network_dim}
    begin = _flags(size) if start is None else ["--dim_from_weights", "--network_weights", shown(start)]
    return [
        *launched(1, min(os.cpu_count() or 1, 8)), "train_network.py", *_flags({
            "--task": "t2v-1.3B", "--dit": shown(DIT), "--dataset_config": shown(dataset),
            "--network_module": "networks.lora_wan"}),
        *begin, "--network_args", f"conditions={recipe.conditions}", *recipe.network_args, *_flags({
            "--optimizer_type": "adamw", "--learning_rate": recipe.learning_rate, "--lr_scheduler": "cosine",
            "--timestep_sampling": "shift", "--discrete_flow_shift": recipe.shift, "--max_train_steps": recipe.steps,
            **(validation if recipe.validation_count else {}),
            "--seed": recipe.seed, "--output_dir": shown(out), "--output_name": NAME}),
        *recipe.train_args, "--save_at_first"]


def generate_command(recipe: Recipe, lora: Path, prompts: Path, folder: Path) -> list[str]:
    """Generate every line of a prompt file on models that are loaded once."""
    return ["generate_video.py", *_flags({
        "--task": "t2v-1.3B", "--dit": shown(DIT), "--vae": shown(VAE), "--t5": shown(T5), "--wav2vec": shown(WAV2VEC),
        "--lora_weight": shown(lora), "--from_file": shown(prompts)}), "--video_size", str(SIZE), str(SIZE),
        *_flags({"--infer_steps": recipe.infer_steps, "--sample_solver": "euler",
                 "--guidance_scale": recipe.guidance_scale, "--flow_shift": 3, "--save_path": shown(folder)})]


def prompt_line(item: Item) -> str:
    """A line of a prompt file."""
    return f"{item.caption} --i \"{item.picture.as_posix()}\" --a \"{item.audio.as_posix()}\" --d {item.seed}\n"


def _flags(values: dict[str, str | int | float]) -> list[str]:
    return [word for name, value in values.items() for word in (name, str(value))]
