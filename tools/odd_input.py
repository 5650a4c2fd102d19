"""Give generate_video.py odd sounds, pictures, masks and prompt files, and print what became of each.

    python tools/odd_input.py [--out odd-input-run] [--minutes 40]

Everything is made here: nothing but the tiny random weights of tools/tiny_weights.py is needed. The first table holds
what must work, the second what must stop with one message before a model loads. `--minutes` adds a sound of that
length, which is heard whole and of which the first frames are made chunk by chunk, with the memory of the process. Exit
code 1 when an outcome is another one. The tables are what docs/real-input.md holds.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
import re
import shlex
import subprocess
import sys

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

RATE = 16_000
SIDE = 32
SHORT_S = 1.2
LONG_FRAMES = 1701
"""Of a very long sound: chunk 8 of 201 frames, 13 taken over, is among them."""


@dataclass(frozen=True)
class Odd:
    """One odd input: the words that generate_video.py is given for it, beside models and size."""

    what: str
    words: tuple[str, ...]


class Bench:
    """The folder with weights, an audio condition and odd files."""

    def __init__(self, out: Path) -> None:
        self.out, self.weights = out, out / "weights"

    @property
    def lora(self) -> Path:
        """A network with a random audio condition."""
        return self.out / "talking.safetensors"

    def path(self, name: str) -> str:
        """Of a file in the folder, as a word of a command."""
        return str(self.out / name)

    def sound(self, name: str, seconds: float = SHORT_S, *, rate: int = RATE, channels: int = 1,
              subtype: str = "PCM_16", level: float = 0.3) -> str:
        """Write syllables of noise as WAV and return the path."""
        import soundfile

        time = np.arange(round(seconds * rate)) / rate
        noise = np.random.default_rng(0).standard_normal((len(time), channels))
        soundfile.write(self.out / name, level * noise * np.abs(np.sin(4 * np.pi * time))[:, None], rate,
                        format="WAV", subtype=subtype)
        return self.path(name)

    def picture(self, name: str, width: int = 64, height: int = 64, *, level: int | None = None,
                format: str = "PNG") -> str:
        """Write a picture of noise, or of one level, and return the path."""
        from PIL import Image

        noise = np.random.default_rng(1).integers(0, 255, (height, width, 3), dtype=np.uint8)
        pixels = noise if level is None else np.full_like(noise, level)
        Image.fromarray(pixels).save(self.out / name, format=format)
        return self.path(name)

    def text(self, name: str, content: str) -> str:
        """Write a text file and return the path."""
        (self.out / name).write_text(content, encoding="utf-8")
        return self.path(name)

    def network(self, path: Path, weights: Path, name: str = "omniavatar_add") -> str:
        """Write a network with the audio condition `name` for the DiT in `weights`, and return the path."""
        import torch

        from common.tensorfile import save_tensors
        from networks.condition_weights import condition_tensors
        from networks.lora_wan import create_network
        from networks.metadata import Origin
        import wan
        from wan.conditions.registry import build_condition
        from wan.encoders.audio import load_audio_encoder

        torch.manual_seed(0)
        dit, encoder = wan.load_dit(weights), load_audio_encoder(self.weights / "wav2vec2-base-960h")
        settings = {"audio_states": str(encoder.states), "audio_width": str(encoder.width)}
        conditions = {name: build_condition(name, settings, dit.variant)}
        origin = Origin(conditions={name: conditions[name].settings_text()}, fps=25.0, picture_mode="cover")
        network = create_network(dit, dim=2, alpha=2.0)
        save_tensors(path, network.state() | condition_tensors(conditions), origin.text())
        return str(path)

    def command(self, odd: Odd) -> list[str]:
        """The whole command of an odd input; its words stand last, so that they win."""
        weights = self.weights
        usual = {"--dit": weights / "wan2.1_t2v_tiny.safetensors", "--vae": weights / "Wan2.1_VAE.pth",
                 "--t5": weights / "models_t5_umt5-xxl-enc-bf16.pth", "--wav2vec": weights / "wav2vec2-base-960h",
                 "--lora_weight": self.lora, "--image_path": self.out / "face.png", "--audio": self.out / "short.wav",
                 "--prompt": "a person speaks", "--infer_steps": 1, "--guidance_scale": 1, "--seed": 1,
                 "--save_path": self.out / "made"}
        if "--from_file" in odd.words:
            usual = {flag: usual[flag] for flag in usual if flag not in ("--image_path", "--audio", "--prompt")}
        given = {word for word in odd.words if word.startswith("--")}
        kept = [str(part) for flag, value in usual.items() if flag not in given for part in (flag, value)]
        size = [] if "--video_size" in given else ["--video_size", str(SIDE), str(SIDE)]
        return ["generate_video.py", *kept, *size, *odd.words]

    def outcome(self, odd: Odd) -> tuple[bool, str]:
        """Whether the command succeeded, and its message: of a success the size and length, else the error."""
        done = subprocess.run([sys.executable, *self.command(odd)], cwd=ROOT, capture_output=True, text=True)
        said = self.plain(done.stdout + done.stderr)
        if done.returncode == 0:
            return True, self.made()
        if "Traceback" in said:
            return False, f"TRACEBACK: {said.splitlines()[-1]}"
        error = [line for line in said.splitlines() if re.match(r"(error|failed): ", line)]
        rest = said.split("error: ", 1)[-1].strip() if error and error[0].startswith("error") else error[0]
        return False, " ".join(rest.removeprefix("failed: ").split())

    def made(self) -> str:
        """Size, frames and length of sound of the newest video."""
        from common.media.sound import read_sound
        from common.media.video import read_frames

        video = max((self.out / "made").glob("*.mp4"), key=lambda path: path.stat().st_mtime_ns)
        count, height, width = read_frames(video, fps=25).shape[:3]
        return f"{width}x{height}, {count} frames, {read_sound(video).duration_s:.2f} s of sound"

    def plain(self, text: str) -> str:
        """The text without the folders of this machine."""
        return text.replace(f"{self.out}/", "")


def working(bench: Bench) -> list[Odd]:
    """What must work."""
    sound, picture = bench.sound, bench.picture
    prompts = bench.text("omniavatar.txt", f"a person speaks@@{bench.path('face.png')}@@{bench.path('short.wav')}\n")
    return [
        Odd("8-bit sound", ("--audio", sound("8bit.wav", subtype="PCM_U8"))),
        Odd("24-bit sound", ("--audio", sound("24bit.wav", subtype="PCM_24"))),
        Odd("32-bit float sound", ("--audio", sound("float.wav", subtype="FLOAT"))),
        Odd("48 kHz stereo, right channel heard", (
            "--audio", sound("stereo.wav", rate=48_000, channels=2), "--audio_channel", "2")),
        Odd("silence", ("--audio", sound("silence.wav", level=0.0))),
        Odd("picture of 8x8 pixels", ("--image_path", picture("tiny.png", 8, 8))),
        Odd("picture of 6000x4000 pixels", ("--image_path", picture("huge.jpg", 6000, 4000, format="JPEG"))),
        Odd("JPEG under the name .png", ("--image_path", picture("jpeg.png", format="JPEG"))),
        Odd("prompt@@image@@audio file", ("--from_file", prompts)),
        Odd("chunks of a token budget, overlap 5", (
            "--audio", sound("long.wav", 4.0), "--max_tokens", "132", "--overlap_frame", "5")),
        Odd("two speakers side by side", ("--audio2", sound("other.wav", 0.8))),
    ]


def refused(bench: Bench) -> list[Odd]:
    """What must stop with one message, before a model loads."""
    sound, picture = bench.sound, bench.picture
    black, white = picture("black.png", level=0), picture("white.png", level=255)
    wide = bench.out / "other_width.safetensors"
    five = bench.text("five.txt", "a@@b@@c@@d@@e\n")
    bench.text("nothing.wav", "")
    return [
        Odd("sound without samples", ("--audio", sound("empty.wav", 0.0))),
        Odd("file of no bytes", ("--audio", bench.path("nothing.wav"))),
        Odd("mask that covers nothing", ("--audio2", sound("second.wav"), "--speaker_masks", white, black)),
        Odd("two places and one sound", ("--speaker_boxes", "0,0,0.5,1", "0.5,0,1,1")),
        Odd("network of a model of another width", ("--lora_weight", str(wide))),
        Odd("overlap that is not 4n+1", ("--overlap_frame", "12")),
        Odd("prompt line with five fields", ("--from_file", five)),
        Odd("text under the name .wav", ("--audio", bench.text("text.wav", "no sound at all\n" * 20))),
        Odd("picture that is none", ("--image_path", bench.text("text.png", "no picture\n"))),
        Odd("channel that the sound lacks", ("--audio_channel", "2")),
    ]


def write_wide(bench: Bench) -> None:
    """A network for a DiT that is half as wide again."""
    import torch

    from common.tensorfile import save_tensors
    from wan.modules.dit import WanDiT
    from wan.variants import Variant

    variant = Variant(dim=384, ffn_dim=128, layers=4, heads=3, in_channels=16, out_channels=16, text_dim=64)
    torch.manual_seed(0)
    save_tensors(bench.out / "wide_dit.safetensors", WanDiT(variant).state_dict(), {})
    bench.network(bench.out / "other_width.safetensors", bench.out / "wide_dit.safetensors")


def long_sound(bench: Bench, minutes: float) -> str:
    """Frames, chunks, seconds and memory of a very long sound, of which the first `LONG_FRAMES` are made."""
    import time

    from common.config import parse
    from inference import GenerationRequest, load_pipeline
    from tools.proof.memory import ChunkMemory

    words = bench.command(Odd("", ("--audio", bench.sound("hours.wav", 60 * minutes), "--chunk_frames", "201",
                                   "--video_length", str(LONG_FRAMES), "--save_path", bench.path("hours.mp4"))))
    request = parse(GenerationRequest, words[1:], prog=words[0], description="")
    pipeline, started = load_pipeline(request), time.monotonic()
    plan = pipeline.plan(request)
    with ChunkMemory("cpu") as memory:
        pipeline.generate(request, watch=memory.watch)
    peaks = [round(peak) for peak in memory.peaks]
    return (f"{minutes:g} minutes heard: {plan.shown_frames} frames in {len(plan.segments)} chunks, "
            f"{time.monotonic() - started:.0f} s; memory at most {peaks[1]} MiB in chunk 2, {peaks[7]} MiB in chunk 8, "
            f"{peaks[-1]} MiB in the last")


def table(bench: Bench, odds: Sequence[Odd], is_right: Callable[[bool], bool]) -> int:
    """Print a row for each; how many came out otherwise."""
    wrong = 0
    print("| input | outcome | message |\n|---|---|---|")
    for odd in odds:
        print(f"$ python {bench.plain(shlex.join(bench.command(odd)))}", file=sys.stderr, flush=True)
        worked, text = bench.outcome(odd)
        wrong += not is_right(worked) or text.startswith("TRACEBACK")
        print(f"| {odd.what} | {'works' if worked else 'stops'} | {text.replace('|', chr(92) + '|')} |", flush=True)
    print()
    return wrong


def main() -> int:
    """Make the files, run everything, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "odd-input-run", help="folder for everything that is made")
    parser.add_argument("--minutes", type=float, default=0, help="also a sound of so many minutes")
    arguments = parser.parse_args()
    bench = Bench(arguments.out.resolve())
    bench.out.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "tools/tiny_weights.py", str(bench.weights)], cwd=ROOT, check=True)
    bench.network(bench.lora, bench.weights / "wan2.1_t2v_tiny.safetensors")
    bench.picture("face.png")
    bench.sound("short.wav")
    write_wide(bench)
    wrong = table(bench, working(bench), lambda worked: worked)
    wrong += table(bench, refused(bench), lambda worked: not worked)
    if arguments.minutes:
        print(long_sound(bench, arguments.minutes))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
