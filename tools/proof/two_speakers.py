"""Two heads in one picture, each with its own sound: every mouth against both sounds."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float, UInt8
import numpy as np

from tools.proof.commands import VAE, Commands, generate_command
from tools.proof.designs import Report
from tools.proof.measure import number
from tools.proof.recipe import FPS, FRAMES, SIZE

FIRST_SCENE = 2000
"""Seeds of pictures with two heads that no training sees, from here on."""
HARDLY_DRAWN = "dark skin"
"""Captions that are passed over: the shipped DiT draws mouths on the darkest skin so faintly that no meter reads them
(docs/tiny-weights.md), with or without sound."""
READABLE = 0.9
"""r of both mouths of the rendered clip behind the VAE: below it the meter cannot read the picture, whoever moves."""
PAIRS = ((0, 1), (2, 3), (4, 0))
"""Unseen utterances of the left and the right head; any two of them hardly resemble each other."""
OWN, OTHER = 0.5, 0.2


def two_speakers(commands: Commands) -> Report:
    """Generate each scene with the trained file of `commands`, and measure."""
    folder = commands.result / "two"
    folder.mkdir(parents=True, exist_ok=True)
    rows, own, other = [], [], []
    pairs = [[commands.media / "unseen" / f"speech_{i}.flac" for i in pair] for pair in PAIRS]
    scenes = readable_scenes(pairs)
    for seed, sounds in zip(scenes, pairs, strict=True):
        video = folder / f"two_{seed}.mp4"
        commands.run(_command(commands, draw_picture(seed, folder), sounds, video, seed))
        table = mouths_against_sounds(frames_of(video), sounds)
        own += [table[0, 0], table[1, 1]]
        other += [table[0, 1], table[1, 0]]
        rows.append(f"| {seed} | {number(table[0, 0])} | {number(table[0, 1])} | {number(table[1, 1])} | "
                    f"{number(table[1, 0])} |")
    heads = ("| picture | left mouth, left sound | left mouth, right sound | right mouth, right sound | right mouth, "
             "left sound |")
    title = (f"Two speakers: {commands.folder}. Of the scenes from {FIRST_SCENE} on, the first without {HARDLY_DRAWN} "
             f"in which the meter reads both mouths of the rendered clip behind the VAE (r {READABLE} or more)")
    text = "\n".join([title, "", heads, "|---|---|---|---|---|", *rows]) + "\n"
    return Report(text, all(r >= OWN for r in own) and all(abs(r) <= OTHER for r in other))


def readable_scenes(pairs: Sequence[Sequence[Path]]) -> list[int]:
    """For each pair of sounds the next scene whose mouths the meter can read at all; nothing generated is looked at."""
    from tools.heads.scene import draw_scene
    from tools.proof.reference import reconstruct

    found: list[int] = []
    seed = FIRST_SCENE - 1
    while len(found) < len(pairs):
        seed += 1
        if HARDLY_DRAWN in draw_scene(seed, 2).caption:
            continue
        sounds = pairs[len(found)]
        shown = reconstruct({"clip": render_pair(seed, sounds)}, VAE)["clip"]
        table = mouths_against_sounds(shown, sounds)
        if table[0, 0] >= READABLE and table[1, 1] >= READABLE:
            found.append(seed)
    return found


def render_pair(seed: int, sounds: Sequence[Path]) -> UInt8[np.ndarray, "N H W 3"]:
    """Both heads of a scene, each with the mouth that follows its sound by law."""
    from common.media.sound import mono16k, read_sound
    from common.timebase import AUDIO_SAMPLE_RATE_HZ
    from tools.heads.clip import render_clip
    from tools.heads.laws import mouth_curves
    from tools.heads.scene import draw_scene

    curves = [mouth_curves(mono16k(read_sound(path)), AUDIO_SAMPLE_RATE_HZ, FRAMES) for path in sounds]
    return render_clip(draw_scene(seed, 2), curves, size=SIZE, frames=FRAMES).pictures


def draw_picture(seed: int, folder: Path) -> Path:
    """Both heads with shut mouths, as PNG, and their caption beside it."""
    import cv2

    from common.atomic import atomic_path, write_text
    from tools.heads.clip import render_clip
    from tools.heads.laws import MouthCurves
    from tools.heads.scene import draw_scene

    scene, shut = draw_scene(seed, 2), MouthCurves(np.zeros(1), np.zeros(1))
    picture = render_clip(scene, [shut, shut], size=SIZE, frames=1).pictures[0]
    path = folder / f"two_{seed}.png"
    with atomic_path(path) as temporary:
        temporary.write_bytes(cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())
    write_text(path.with_suffix(".txt"), scene.caption + "\n")
    return path


def _command(commands: Commands, picture: Path, sounds: Sequence[Path], video: Path, seed: int) -> list[str]:
    words = generate_command(commands.recipe, commands.lora("after"), Path("unused"), video)
    at = words.index("--from_file")
    words[at:at + 2] = ["--image_path", str(picture), "--audio", str(sounds[0]), "--audio2", str(sounds[1]),
                        "--prompt", picture.with_suffix(".txt").read_text(encoding="utf-8").strip()]
    at = words.index("--video_size")
    words[at + 1:at + 3] = [str(SIZE), str(2 * SIZE)]
    return [*words, "--seed", str(seed)]


def frames_of(video: Path) -> UInt8[np.ndarray, "N H W 3"]:
    """The frames of a generated clip."""
    from common.media.video import read_frames

    return read_frames(video, fps=FPS)[:FRAMES]


def mouths_against_sounds(frames: UInt8[np.ndarray, "N H W 3"], sounds: Sequence[Path]) -> Float[np.ndarray, "2 2"]:
    """[mouth from the left, sound]: r at lag 0; NaN where other than two mouths are seen."""
    from common.media.sound import mono16k, read_sound
    from common.timebase import AUDIO_SAMPLE_RATE_HZ
    from evaluation.mouth import NoMouthError, mouth_openings
    from evaluation.sync import correlation_at, speech_envelope

    envelopes = [speech_envelope(mono16k(read_sound(path)), AUDIO_SAMPLE_RATE_HZ, len(frames), FPS) for path in sounds]
    try:
        openings = mouth_openings(frames)
    except NoMouthError:
        openings = []
    table = np.full((2, 2), np.nan)
    if len(openings) == 2:
        for i, opening in enumerate(openings):
            for j, envelope in enumerate(envelopes):
                r = correlation_at(opening[1:], envelope[1:], 0)
                table[i, j] = np.nan if r is None else r
    return table
