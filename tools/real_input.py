"""Try a folder of real videos, sounds and pictures on the whole path with tiny weights, and print what became of each.

    python tools/real_input.py MEDIA [--out real-input-run]

MEDIA holds the folders video, audio and image. Every video and picture is opened alone as a dataset; then all that can
be used are cached, trained on for 50 steps, and every sound and picture is given to generate_video.py. The tables
are what docs/real-input.md holds. Exit code 1 when a command fails that should not.
"""

import argparse
from collections.abc import Iterable, Sequence
import json
from pathlib import Path
import re
import shlex
import subprocess
import sys

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIZE, FRAMES = 128, 25
CHUNK = 73
"""Frames that a chunk has by default at 480x832."""
LAUNCH = ("-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no",
          "--dynamo_backend", "no")


class Trial:
    """One run over a folder of media."""

    def __init__(self, media: Path, out: Path) -> None:
        self.media, self.out, self.weights = media, out, out / "weights"
        self.videos, self.sounds, self.pictures = (
            sorted(file for file in (media / kind).iterdir() if file.is_file()) for kind in ("video", "audio", "image"))

    def run(self, *words: str | Path, expect: tuple[int, ...] = (0,)) -> str:
        """Output of a command, which is shown before it starts."""
        command = [str(word) for word in words]
        print(f"$ python {self.plain(shlex.join(command))}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        if done.returncode not in expect:
            sys.exit(f"exit code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return self.plain(done.stdout + done.stderr)

    def plain(self, text: str) -> str:
        """The text without the folders of this machine."""
        for folder in (self.media / "video", self.media / "audio", self.media / "image", self.media, self.out):
            text = text.replace(f"{folder}/", "")
        return text

    def entry(self, name: str, kind: str, files: Iterable[Path], **keys: object) -> str:
        """A dataset entry over a list of these files."""
        lines = [json.dumps({f"{kind}_path": str(file), "caption": f"A person speaks, {file.stem}."}) for file in files]
        (self.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        more = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        return (f'[[datasets]]\nname = "{name}"\n{kind}_jsonl_file = "{(self.out / name).as_posix()}.jsonl"\n'
                f'cache_directory = "{(self.out / "cache" / name).as_posix()}"\n{more}\n')

    def toml(self, name: str, *entries: str) -> Path:
        """A dataset TOML of these entries."""
        path = self.out / f"{name}.toml"
        path.write_text(f"[general]\nresolution = [{SIZE}, {SIZE}]\nenable_bucket = true\n\n" + "".join(entries),
                        encoding="utf-8")
        return path

    def opened(self, kind: str, file: Path, **keys: object) -> tuple[bool, str]:
        """Whether the file gives a clip when it stands alone in a dataset, and what is said about it."""
        from common.errors import UserError
        from dataset.config import load_dataset_config
        from dataset.open import open_dataset

        try:
            dataset = open_dataset(load_dataset_config(self.toml("one", self.entry("one", kind, [file], **keys))))
        except UserError as error:
            text = self.plain(str(error)).replace("one.toml: ", "").replace("one.jsonl:1 ", "")
            return False, text.replace(f"{file.name}: ", "").replace(f"({file.name}): ", "")
        spans = [span for item in dataset.items for span in item.spans]
        said = [self.plain(note).replace("'one': ", "").replace(f"{file.name}: ", "").rstrip(".")
                for note in dataset.notes if file.name in note]
        size = ", ".join(f"{span.width}x{span.height}x{span.frames} at {dataset.items[0].fps:g} fps" for span in spans)
        return True, "; ".join([size if kind == "video" else size.split("x1 ")[0], *said])


def tell_video(trial: Trial, file: Path) -> tuple[str, str, dict[str, object]]:
    """(outcome, message, keys of the entry that takes it) of a video."""
    ways: tuple[dict[str, object], ...] = (
        {"audio": "clip", "target_frames": [FRAMES]}, {"audio": "none", "target_frames": [FRAMES]},
        {"audio": "none", "target_frames": [1]})
    refusals: list[tuple[str, str]] = []
    for keys in ways:
        is_taken, text = trial.opened("video", file, **keys)
        if is_taken:
            told = "".join(f"With {how}: refused: {why.rstrip('.')}. " for how, why in refusals)
            how = f"With {_keys(keys)}: " if refusals else ""
            return ("encoded" if not refusals else "refused, then encoded"), told + how + text, keys
        refusals.append((_keys(keys), text))
    return "refused", refusals[0][1], {}


def _keys(keys: dict[str, object]) -> str:
    return ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in keys.items())


def cache_and_train(trial: Trial, taken: Sequence[tuple[Path, dict[str, object]]]) -> list[str]:
    """Cache, cache again, train; the summary line of each."""
    groups: dict[str, tuple[dict[str, object], list[Path]]] = {}
    for file, keys in taken:
        groups.setdefault(_keys(keys), (keys, []))[1].append(file)
    entries = [trial.entry(f"videos{number}", "video", files, **keys)
               for number, (keys, files) in enumerate(groups.values(), start=1)]
    data = ("--dataset_config", trial.toml("all", *entries, trial.entry("pictures", "image", trial.pictures)))
    vae, t5 = trial.weights / "Wan2.1_VAE.pth", trial.weights / "models_t5_umt5-xxl-enc-bf16.pth"
    scripts = (("cache_latents.py", *data, "--vae", vae), ("cache_text_encoder_outputs.py", *data, "--t5", t5),
               ("cache_audio_features.py", *data, "--wav2vec", trial.weights / "wav2vec2-base-960h"))
    said = [trial.run(*script).splitlines()[-1] for script in scripts * 2]
    log = trial.run(*LAUNCH, "train_network.py", "--task", "t2v-1.3B", "--dit",
                    trial.weights / "wan2.1_t2v_tiny.safetensors", *data, "--network_module", "networks.lora_wan",
                    "--network_dim", "8", "--network_alpha", "8", "--network_args", "conditions=omniavatar_add",
                    "--learning_rate", "1e-3", "--timestep_sampling", "shift", "--discrete_flow_shift", "3",
                    "--max_train_steps", "50", "--seed", "42", "--output_dir", trial.out / "lora", "--output_name",
                    "talking")
    steps = [line for line in log.splitlines() if re.match(r"step (1|50)/50 ", line)]
    return [*said, *steps, next(line for line in log.splitlines() if line.startswith("trained 50 steps"))]


def generate(trial: Trial, name: str, pairs: Sequence[tuple[Path, Path]], *words: str) -> list[str]:
    """What generate_video.py says to each pair of a picture and a sound: a reason, or that it was written."""
    prompts = trial.out / f"{name}.txt"
    prompts.write_text("".join(f"a person speaks --i {picture} --a {sound}\n" for picture, sound in pairs),
                       encoding="utf-8")
    weights = trial.weights
    said = trial.run(
        "generate_video.py", "--task", "t2v-1.3B", "--dit", weights / "wan2.1_t2v_tiny.safetensors", "--vae",
        weights / "Wan2.1_VAE.pth", "--t5", weights / "models_t5_umt5-xxl-enc-bf16.pth", "--wav2vec",
        weights / "wav2vec2-base-960h", "--lora_weight", trial.out / "lora" / "talking.safetensors", "--from_file",
        prompts, "--guidance_scale", "1", "--seed", "42", "--save_path", trial.out / name, *words, expect=(0, 1))
    answers = []
    for number in range(1, len(pairs) + 1):
        place = re.escape(f"{name}.txt line {number}: ")
        failed = re.search(rf"^failed: {place}(.*)$", said, re.MULTILINE)
        made = re.search(rf"^{place}(\d+x\d+, .*? of sound(?: in \d+ chunks)?)", said, re.MULTILINE)
        answers.append(f"refused: {failed[1]}" if failed else f"generated: {made[1]}" if made else "no answer")
    if said.count("wrote ") != sum(answer.startswith("generated") for answer in answers):
        sys.exit(said[-4000:])
    return answers


def main() -> int:
    """Try everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("media", type=Path, help="folder that holds video, audio and image")
    parser.add_argument("--out", type=Path, default=ROOT / "real-input-run", help="folder for everything that is made")
    arguments = parser.parse_args()
    trial = Trial(arguments.media.resolve(), arguments.out.resolve())
    trial.out.mkdir(parents=True, exist_ok=True)
    trial.run("tools/tiny_weights.py", trial.weights)
    videos = [(file, *tell_video(trial, file)) for file in trial.videos]
    pictures = [(file, *trial.opened("image", file)) for file in trial.pictures]
    summary = cache_and_train(trial, [(file, keys) for file, _, _, keys in videos if keys])
    faces = [trial.pictures[number % len(trial.pictures)] for number in range(len(trial.sounds))]
    pairs = list(zip(faces, trial.sounds, strict=True))
    heard = generate(trial, "sounds", pairs, "--video_size", "64", "64", "--infer_steps", "1", "--chunk_frames",
                     str(CHUNK))
    shortest = next(sound for sound, answer in zip(trial.sounds, heard, strict=True) if "chunks" not in answer)
    shown = generate(trial, "faces", [(file, shortest) for file in trial.pictures], "--video_size", str(SIZE),
                     str(SIZE), "--infer_steps", "2")
    table(("video", "outcome", "message"), [(file.name, outcome, text) for file, outcome, text, _ in videos])
    table(("picture", "in a dataset", "as --image_path"),
          [(file.name, text if taken else f"refused: {text}", answer)
           for (file, taken, text), answer in zip(pictures, shown, strict=True)])
    table(("sound", f"at 64x64 with --chunk_frames {CHUNK}"),
          [(file.name, answer) for file, answer in zip(trial.sounds, heard, strict=True)])
    print("\n".join(f"    {line}" for line in summary))
    return 0


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for row in (heading, ["---"] * len(heading), *rows):
        print("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
    print()


if __name__ == "__main__":
    sys.exit(main())
