"""The main job at real sizes on one GPU: cache, train, generate; seconds and peak memory of each part.

    python -m benchmarks.main_job WORK_DIR --clip talking.mp4 --face face.jpg --speech speech.wav --result FILE.md

Writes random weights into WORK_DIR/weights first (about 41 GB, `benchmarks.random_weights`), then runs the very
commands that a user runs and takes their own figures from what they print.
"""

import argparse
import json
from pathlib import Path
import re
import shutil
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parent.parent


def run(title: str, command: list[str], rows: list[tuple[str, str, str]]) -> None:
    """Run one command; add its wall seconds and the figures that it printed."""
    print(f"\n=== {title}\n$ {' '.join(command)}", flush=True)
    started = time.monotonic()
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.monotonic() - started
    print(result.stdout[-4000:], flush=True)
    figures = re.findall(r"^.* GiB on cuda.*$|^loaded .*$", result.stdout, re.MULTILINE)
    rows.append((title, f"{seconds:.1f}", "; ".join(figures)))
    if result.returncode:
        sys.exit(f"{title}: exit code {result.returncode}")


def train_command(work: Path, name: str, extra: list[str]) -> list[str]:
    """Five LoRA steps with the audio condition, r = 32 on every block linear."""
    return [sys.executable, "train_network.py", "--task", "t2v-14B", "--dit", str(work / "weights"), "--dataset_config",
            str(work / "data.toml"), "--network_module", "networks.lora_wan", "--network_dim", "32", "--network_alpha",
            "32", "--network_args", "conditions=omniavatar_add", "--optimizer_type", "adamw", "--learning_rate", "1e-4",
            "--mixed_precision", "bf16", "--gradient_checkpointing", "--timestep_sampling", "shift",
            "--discrete_flow_shift", "5", "--max_train_steps", "5", "--seed", "1", "--output_dir", str(work / name),
            "--output_name", name, *extra]


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--face", type=Path, required=True)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--result", type=Path)
    parser.add_argument("--caption", default="A person speaks to the camera.")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    (work / "clips").mkdir(parents=True, exist_ok=True)
    shutil.copy(arguments.clip, work / "clips" / f"clip{arguments.clip.suffix}")
    (work / "clips" / "clip.txt").write_text(arguments.caption)
    (work / "data.toml").write_text(
        '[general]\nresolution = [832, 480]\ncaption_extension = ".txt"\n[[datasets]]\n'
        f"video_directory = {json.dumps(str(work / 'clips'))}\ncache_directory = {json.dumps(str(work / 'cache'))}\n"
        'audio = "clip"\ntarget_frames = [81]\n')
    weights, data = work / "weights", ["--dataset_config", str(work / "data.toml")]
    rows: list[tuple[str, str, str]] = []
    if not (weights / "done").exists():
        run("write random weights", [sys.executable, "-m", "benchmarks.random_weights", str(weights)], rows)
        (weights / "done").touch()
    files = {"--vae": weights / "Wan2.1_VAE.pth", "--t5": weights / "models_t5_umt5-xxl-enc-bf16.pth",
             "--wav2vec": weights / "wav2vec2-base-960h"}
    for script, flag in (("cache_latents.py", "--vae"), ("cache_text_encoder_outputs.py", "--t5"),
                         ("cache_audio_features.py", "--wav2vec")):
        run(script, [sys.executable, script, *data, flag, str(files[flag])], rows)
    run("train, bf16 base, 5 steps", train_command(work, "bf16", []), rows)
    run("train, fp8 base, 5 steps", train_command(work, "fp8", ["--fp8_base", "--fp8_scaled"]), rows)
    run("generate, 4 steps, 832x480", [
        sys.executable, "generate_video.py", "--task", "t2v-14B", "--dit", str(weights),
        *[word for flag, path in files.items() for word in (flag, str(path))], "--lora_weight",
        str(work / "bf16" / "bf16.safetensors"), "--prompt", arguments.caption, "--image_path", str(arguments.face),
        "--audio", str(arguments.speech), "--video_size", "480", "832", "--video_length", "81", "--infer_steps", "4",
        "--max_tokens", "33000", "--seed", "1", "--save_path", str(work / "talking.mp4")], rows)
    lines = [("part", "wall s", "figures printed"), ("---", "---", "---"), *rows]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    print("\n" + table)
    if arguments.result:
        arguments.result.write_text(table)


if __name__ == "__main__":
    main()
