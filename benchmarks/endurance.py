"""Thousands of steps in one process: does memory grow, does the disk keep its promise?

``python -m benchmarks.endurance --steps 5000`` trains on the shipped weights with validations, previews, checkpoints
and states that rotate, and reads the process's resident memory (psutil) as the log of steps grows. Goals: resident
memory after the last step at most 1.02 times that after step 500, and the folder no larger than docs/resume.md says.
"""

import argparse
from pathlib import Path
import sys
import tempfile
import time

import psutil

from benchmarks.faults.runs import WEIGHTS, Training, prepare
from training.keeping.states import find_states

EARLY = 500


def main() -> int:
    """Measure and print; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--out", type=Path, help="folder to keep (default: a temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        return measure(given.out or Path(name), given.steps)


def training(folder: Path, steps: int) -> Training:
    """The run, with everything that comes again and again."""
    data = prepare(folder)
    prompts = folder / "prompts.txt"
    prompts.write_text(f"a head that talks --w 32 --h 32 --f 9 --s 2 --d 1 --i {folder / 'clips' / 'first.png'} "
                       f"--a {folder / 'clips' / 'head_000.mp4'}\n", encoding="utf-8")
    _first_frame(folder / "clips" / "head_000.mp4", folder / "clips" / "first.png")
    return Training(data, folder / "out", more=(
        "--max_train_steps", str(steps), "--save_every_n_steps", "250", "--save_last_n_steps", "500",
        "--save_state_every_n_steps", "250", "--validation_count", "1", "--validate_every_n_steps", "250",
        "--sample_prompts", str(prompts), "--sample_every_n_steps", "500", "--vae", str(WEIGHTS / "Wan2.1_VAE.pth"),
        "--t5", str(WEIGHTS / "models_t5_umt5-xxl-enc-bf16.pth"), "--wav2vec", str(WEIGHTS / "wav2vec2-base-960h")))


def _first_frame(video: Path, picture: Path) -> None:
    from PIL import Image

    from common.media.video import read_frames

    Image.fromarray(read_frames(video, fps=25, count=1)[0]).save(picture)


def measure(folder: Path, steps: int) -> int:
    """Run it in `folder` and watch."""
    run = training(folder, steps)
    process = run.start()
    watched = psutil.Process(process.pid)
    rows: list[tuple[int, float]] = []
    size = 0.0
    # One step later: the validation and the previews of the step are then behind it.
    started, due = time.monotonic(), EARLY + 1
    while process.poll() is None:
        time.sleep(0.5)
        size = _resident(watched) or size
        done = _last_step(run)
        if size and done >= due:
            rows.append((done, size))
            due += EARLY
    if process.returncode:
        print(run.said[-3000:])
        return 1
    rows.append((steps, size))
    print(f"{steps} steps in {time.monotonic() - started:.0f} s\n\n| after step | resident MiB |\n|---|---|")
    for done, size in rows:
        print(f"| {done} | {size:.1f} |")
    ratio = rows[-1][1] / rows[0][1]
    used, promised = disk(run)
    print(f"\nresident memory: {ratio:.4f} x that after step {rows[0][0]} (goal 1.02)\n"
          f"disk: {used} bytes, the formula gives {promised}")
    return int(ratio > 1.02 or used > promised)


def _resident(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / 2**20
    except psutil.Error:
        return 0.0


def _last_step(run: Training) -> int:
    """The newest step, from the end of the log alone."""
    import re

    path = run.out / "metrics.jsonl"
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4000))
        found = re.findall(rb'"step": (\d+)', file.read())
    return int(found[-1]) if found else 0


def disk(run: Training) -> tuple[int, int]:
    """(bytes used, bytes of the formula of docs/resume.md)."""
    used = sum(path.stat().st_size for path in run.out.rglob("*") if path.is_file())
    checkpoint = max(path.stat().st_size for path in run.out.glob("*.safetensors"))
    state = max(sum(part.stat().st_size for part in path.iterdir()) for path in find_states(run.out, "t"))
    others = sum(path.stat().st_size for path in run.out.rglob("*") if path.is_file()
                 and path.suffix != ".safetensors" and "-state" not in path.parent.name)
    checkpoints = len(list(run.out.glob("*.safetensors")))
    return used, checkpoints * checkpoint + (2 + 1) * state + others


if __name__ == "__main__":
    sys.exit(main())
