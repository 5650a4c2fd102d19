"""A small training on the shipped weights and clips, as a user starts it, and what it leaves."""

from contextlib import suppress
from dataclasses import dataclass
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import time
from typing import Any

import psutil
from safetensors.torch import load_file
import torch

from common.treefile import load_tree

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "examples" / "tiny-weights"
TOML = """[general]
resolution = [32, 32]
caption_extension = ".txt"
[[datasets]]
video_directory = "{folder}/clips"
cache_directory = "{folder}/cache"
audio = "clip"
target_fps = 25
target_frames = [9]
"""


def prepare(folder: Path, clips: int = 6) -> Path:
    """Dataset TOML of some of the shipped clips with everything cached, in `folder`."""
    (folder / "clips").mkdir(parents=True)
    for number in range(clips):
        for suffix in (".mp4", ".txt"):
            shutil.copy(ROOT / "examples" / "demo" / "clips" / f"head_{number:03d}{suffix}", folder / "clips")
    data = folder / "data.toml"
    data.write_text(TOML.format(folder=folder.as_posix()), encoding="utf-8")
    models = {"cache_latents.py": ["--vae", WEIGHTS / "Wan2.1_VAE.pth"],
              "cache_text_encoder_outputs.py": ["--t5", WEIGHTS / "models_t5_umt5-xxl-enc-bf16.pth"],
              "cache_audio_features.py": ["--wav2vec", WEIGHTS / "wav2vec2-base-960h"]}
    for script, more in models.items():
        subprocess.run([sys.executable, script, "--dataset_config", data, *more], cwd=ROOT, check=True,
                       capture_output=True)
    return data


@dataclass(frozen=True)
class Training:
    """A command of train_network.py in a folder of its own."""

    data: Path
    out: Path
    processes: int = 1
    more: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The command's words."""
        script = ["train_network.py"] if self.processes == 1 else [
            "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(self.processes), "train_network.py"]
        return [sys.executable, *script, "--dataset_config", str(self.data), "--dit",
                str(WEIGHTS / "wan2.1_t2v_tiny.safetensors"), "--output_dir", str(self.out), "--output_name", "t",
                "--learning_rate", "1e-3", "--seed", "7", "--network_dim", "4", "--network_alpha", "4",
                "--network_args", "conditions=omniavatar_add", "--network_dropout", "0.1", "--timestep_sampling",
                "shift", "--discrete_flow_shift", "3", "--max_data_loader_n_workers", "1", *self.more]

    def start(self, **options: Any) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own, its words going to ``OUT.log``."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with open(self.out.with_suffix(".log"), "ab") as log:
            return subprocess.Popen(self.words, cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                                    env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)

    def finish(self, **options: Any) -> int:
        """Run it to its end; the exit code."""
        return self.start(**options).wait()

    def timed(self) -> tuple[int, float, float]:
        """Run it to its end: exit code, seconds to the first step and seconds in all."""
        started = time.monotonic()
        process, first = self.start(), 0.0
        while process.poll() is None:
            if not first and self.steps:
                first = time.monotonic() - started
            time.sleep(0.02)
        return process.returncode, first, time.monotonic() - started

    def kill_after(self, seconds: float, *, of_steps: bool) -> bool:
        """Start it and kill every process of it with signal 9; False where it had ended before.

        `seconds` count from its first new step in the log, or from the start of Python.
        """
        process = self.start()
        before, began = self.step, None if of_steps else time.monotonic()
        while began is None or time.monotonic() < began + seconds:
            if process.poll() is not None:
                return False
            if began is None and self.step not in (0, before):
                began = time.monotonic()
            time.sleep(0.002)
        # torchrun gives its workers sessions of their own, so the process group is not all of it.
        whole = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in whole:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        psutil.wait_procs(whole, timeout=10)
        return True

    @property
    def step(self) -> int:
        """The last step that was written down."""
        return max([0, *self.steps])

    @property
    def steps(self) -> list[int]:
        """Steps in metrics.jsonl, in its order."""
        return [line["step"] for line in self.lines if "loss" in line]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Whole lines of metrics.jsonl."""
        found = []
        path = self.out / "metrics.jsonl"
        for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            try:
                found.append(json.loads(text))
            except ValueError:
                continue
        return found

    @property
    def said(self) -> str:
        """What it printed."""
        return self.out.with_suffix(".log").read_text(encoding="utf-8", errors="replace")

    @property
    def rest(self) -> list[str]:
        """Temporary names that are left."""
        return sorted(path.name for path in self.out.rglob(".*")) if self.out.is_dir() else []


def differences(one: Training, other: Training, *, states: bool = True) -> list[str]:
    """What differs between the ends of two runs; empty where they are equal bit for bit."""
    found = []
    for name in ("t.safetensors",):
        found += [f"{name}: {key}" for key in unequal(load_file(one.out / name), load_file(other.out / name))]
    ends = [max(run.out.glob("t-step*-state")) for run in (one, other)] if states else []
    for part in ("optimizer.safetensors", "run.safetensors") if states else ():
        trees = [load_tree(end / part) for end in ends]
        for tree in trees:
            tree.get("callbacks", {}).pop("metrics", None)  # bytes of a file that tells the time
        found += [f"{part}: {key}" for key in unequal(*trees)]
    losses = [[(line["step"], line["loss"], line["lr"]) for line in run.lines if "loss" in line]
              for run in (one, other)]
    if losses[0] != losses[1]:
        found.append("loss history")
    return found


def unequal(one: Any, other: Any, place: str = "") -> list[str]:
    """Places of nested values that are not equal bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{place} keys {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [bad for key in one for bad in unequal(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{place} length"]
        return [bad for i, pair in enumerate(zip(one, other, strict=True)) for bad in unequal(*pair, f"{place}/{i}")]
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [place]
    if hasattr(one, "tobytes"):
        return [] if one.tobytes() == other.tobytes() else [place]
    return [] if one == other or (one != one and other != other) else [f"{place} {one!r} {other!r}"]
