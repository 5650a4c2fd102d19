"""A minute of speech, chunk by chunk: frames, seams, sync at both ends, memory of each chunk."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from jaxtyping import Float, Float32
import numpy as np

from tools.proof.commands import Commands, generate_command
from tools.proof.designs import Report
from tools.proof.inputs import Item
from tools.proof.measure import number
from tools.proof.recipe import FPS, LONG_SETTINGS

SECONDS = 60
WINDOW_S = 10
CHUNK, OVERLAP = 81, 13
LANGUAGE, VOICE = "nl", "f3"
"""Neither is heard in training."""
LARGEST_JUMP = 1.5
LARGEST_LOSS = 0.1
"""Of the correlation, from the first ten seconds to the last."""
MEMORY_SPREAD = 1.02
"""Chunk 8 to chunk 2: resident memory moves by some pages."""


@dataclass(frozen=True)
class LongResult:
    """What was measured on a long video."""

    frames: int
    expected: int
    seams: tuple[int, ...]
    """First new frame of each chunk but the first."""
    jumps: tuple[float, ...]
    """Change of picture at each seam, in units of the mean change inside of chunks, before the video is coded."""
    r_first: float | None
    r_last: float | None
    r_whole: float | None
    peaks_mib: tuple[float, ...]
    seconds: float

    @property
    def is_good(self) -> bool:
        """Whether all goals are met."""
        return (self.frames == self.expected and max(self.jumps) <= LARGEST_JUMP and self.r_first is not None
                and self.r_last is not None and self.r_last >= (1 - LARGEST_LOSS) * self.r_first
                and self.late_peak_mib <= MEMORY_SPREAD * self.peaks_mib[1])

    @property
    def late_peak_mib(self) -> float:
        """Of chunk 8, or of the last one."""
        return self.peaks_mib[min(7, len(self.peaks_mib) - 1)]


def minute_of_speech(seconds: float = SECONDS) -> Float32[np.ndarray, " T"]:
    """One voice that no training hears, sentence after sentence, 16 kHz. Needs espeak-ng."""
    from tools.heads.turns import PAUSE_S, PEAK
    from tools.heads.write import RATE_HZ, spoken

    rng, length = np.random.default_rng(97), round(seconds * RATE_HZ)
    parts: list[np.ndarray] = []
    while sum(len(part) for part in parts) < length:
        speech = spoken(rng, LANGUAGE, VOICE)
        parts += [PEAK * speech / np.abs(speech).max(), np.zeros(round(2 * PAUSE_S * RATE_HZ), np.float32)]
    return np.concatenate(parts)[:length].astype(np.float32)


def long_speech(commands: Commands, item: Item, *, sound: Path | None = None) -> Report:
    """Generate a minute with the trained file of `commands` and the face of `item`, and measure it."""
    from tools.heads.write import write_sound

    folder = commands.result / "long"
    folder.mkdir(parents=True, exist_ok=True)
    if sound is None:
        sound = folder / "speech.flac"
        write_sound(sound, minute_of_speech())
    words = generate_command(commands.recipe, commands.lora("after"), Path("unused"), folder / "long.mp4")
    at = words.index("--from_file")
    words[at:at + 2] = ["--image_path", str(item.picture), "--audio", str(sound), "--prompt", item.caption]
    words += ["--seed", str(item.seed), "--chunk_frames", str(CHUNK), "--overlap_frame", str(OVERLAP),
              *LONG_SETTINGS]
    result = measure_long(words, sound, folder / "frames.jsonl")
    return Report(words_of(result, f"{commands.folder}, {' '.join(LONG_SETTINGS)}"), result.is_good)


def measure_long(words: list[str], sound: Path, figures: Path) -> LongResult:
    """Run a generate_video.py command in this process, and measure what it wrote."""
    import json
    import time

    from common.config import parse
    from common.media.sound import mono16k, read_sound
    from common.media.video import read_frames
    from common.timebase import AUDIO_SAMPLE_RATE_HZ, frames_in
    from evaluation.mouth import NoMouthError, mouth_opening
    from evaluation.sync import speech_envelope
    from inference import GenerationRequest, load_pipeline
    from tools.proof.memory import ChunkMemory

    words = [*words, "--frame_stats", str(figures)]
    request: Any = parse(GenerationRequest, words[1:], prog=words[0], description="")
    started = time.monotonic()
    pipeline = load_pipeline(request)
    plan = pipeline.plan(request)
    with ChunkMemory(str(pipeline.models.device)) as memory:
        pipeline.generate(request, watch=memory.watch)
    seconds = time.monotonic() - started
    frames = read_frames(request.save_path, fps=plan.fps)
    lines = request.frame_stats.read_text(encoding="utf-8").splitlines()
    change = np.array([json.loads(line)["change"] or 0.0 for line in lines])
    seams = tuple(segment.new.start for segment in plan.segments[1:])
    samples = mono16k(read_sound(sound))
    envelope = speech_envelope(samples, AUDIO_SAMPLE_RATE_HZ, len(frames), plan.fps)
    try:
        opening = mouth_opening(frames)
    except NoMouthError:
        opening = np.full(len(frames), np.nan)
    span = round(WINDOW_S * FPS)
    expected = frames_in(len(samples) / AUDIO_SAMPLE_RATE_HZ, plan.fps)
    first, last, whole = (_r(opening[part], envelope[part])
                          for part in (slice(1, span), slice(-span, None), slice(1, None)))
    return LongResult(len(frames), expected, seams, jumps(change, seams), first, last, whole, tuple(memory.peaks),
                      seconds)


def jumps(change: Float[np.ndarray, " N"], seams: tuple[int, ...]) -> tuple[float, ...]:
    """`change` (to the frame before) at each seam, over its mean at all frames but the first two.

    Frame 0 is the given picture, and frame 1 the first that is made.
    """
    inside = np.delete(change, [0, 1, *seams]).mean()
    return tuple(float(value) for value in change[list(seams)] / inside)


def _r(opening: Float[np.ndarray, " N"], envelope: Float[np.ndarray, " N"]) -> float | None:
    from evaluation.sync import correlation_at

    return correlation_at(opening, envelope, 0)


def words_of(result: LongResult, title: str) -> str:
    """The measurement as Markdown."""
    peaks = result.peaks_mib
    rows = [("frames", f"{result.frames} of {result.expected}"),
            ("chunks", f"{len(peaks)}, {result.seconds:.0f} s in all"),
            ("largest change of picture at a seam, over the mean change inside of chunks",
             f"{max(result.jumps):.2f} (median {median(result.jumps):.2f})"),
            ("r in the first 10 s, the last 10 s, and over all",
             f"{number(result.r_first)}, {number(result.r_last)}, {number(result.r_whole)}"),
            ("peak memory of chunk 2, of chunk 8, and of the last, MiB",
             f"{peaks[1]:.0f}, {result.late_peak_mib:.0f}, {peaks[-1]:.0f}")]
    return "\n".join([f"A minute of speech: {title}", "", "| | |", "|---|---|",
                      *(f"| {name} | {value} |" for name, value in rows)]) + "\n"
