"""The main job, from media to talking video, on the small set in examples/demo and the tiny weights beside it.

    python tools/demo.py [--out demo-run] [--steps 150]

Runs the five commands that a user runs on real weights, prints each before it starts, and ends with the video's path.
The weights (examples/tiny-weights) are a few megabytes, trained on rendered heads without sound; the few steps of
training here begin to teach them sound, no more: the mouth moves, but does not follow the words yet.
"""

import argparse
from pathlib import Path
import shlex
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
SET = ROOT / "examples" / "demo"
WEIGHTS = ROOT / "examples" / "tiny-weights"
PROMPT = "A talking head: a person with tan skin and long blond hair in a navy shirt, green wall."


def commands(out: Path, steps: int) -> list[list[str]]:
    """The five commands."""
    dataset = out / "talking.toml"
    dit, vae, t5 = (WEIGHTS / name for name in
                    ("wan2.1_t2v_tiny.safetensors", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"))
    wav2vec = WEIGHTS / "wav2vec2-base-960h"
    lora = out / "lora"
    python, data = [sys.executable], ["--dataset_config", str(dataset)]
    launch = [*python, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "2"]
    return [
        [*python, "cache_latents.py", *data, "--vae", str(vae)],
        [*python, "cache_text_encoder_outputs.py", *data, "--t5", str(t5)],
        [*python, "cache_audio_features.py", *data, "--wav2vec", str(wav2vec)],
        [*launch, "train_network.py", "--task", "t2v-1.3B", "--dit", str(dit), *data,
         "--network_module", "networks.lora_wan", "--network_dim", "16", "--network_alpha", "16",
         "--network_args", "conditions=omniavatar_add", "--optimizer_type", "adamw8bit", "--learning_rate", "2e-3",
         "--lr_scheduler", "cosine",
         "--timestep_sampling", "shift", "--discrete_flow_shift", "3", "--max_train_steps", str(steps), "--seed", "42",
         "--output_dir", str(lora), "--output_name", "talking"],
        [*python, "generate_video.py", "--task", "t2v-1.3B", "--dit", str(dit), "--vae", str(vae), "--t5", str(t5),
         "--wav2vec", str(wav2vec), "--lora_weight", str(lora / "talking.safetensors"), "--prompt", PROMPT,
         "--image_path", str(SET / "face.png"), "--audio", str(SET / "speech.wav"), "--video_size", "128", "128",
         "--infer_steps", "10", "--guidance_scale", "1", "--flow_shift", "3", "--seed", "42",
         "--save_path", str(out / "talking.mp4")],
    ]


def main() -> int:
    """Run the commands in order; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "demo-run", help="folder for everything that the demo makes")
    parser.add_argument("--steps", type=int, default=150, help="training steps")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    clips, cache = (SET / "clips").as_posix(), (out / "cache").as_posix()
    template = (SET / "talking.toml").read_text(encoding="utf-8")
    (out / "talking.toml").write_text(template.replace("examples/demo/clips", clips).replace("demo-run/cache", cache),
                                      encoding="utf-8")
    started = time.monotonic()
    for command in commands(out, arguments.steps):
        print(f"\n$ {shlex.join('python' if word == sys.executable else word for word in command)}", flush=True)
        code = subprocess.run(command, cwd=ROOT).returncode
        if code:
            print(f"error: this command ended with exit code {code}; its message is above", file=sys.stderr)
            return code
    print(f"\ndone in {time.monotonic() - started:.0f} s: {out / 'talking.mp4'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
