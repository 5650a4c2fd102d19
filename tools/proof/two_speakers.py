"""Two heads in one picture, each with its own sound: every mouth against both sounds."""

from pathlib import Path

import numpy as np

from tools.proof.commands import Commands, generate_command
from tools.proof.designs import Report
from tools.proof.measure import number
from tools.proof.recipe import FPS, FRAMES, SIZE

SCENES = (2000, 2001, 2002)
"""Seeds of pictures with two heads that no training sees."""
PAIRS = ((0, 1), (2, 3), (4, 0))
"""Unseen utterances of the left and the right head; any two of them hardly resemble each other."""
OWN, OTHER = 0.5, 0.2


def two_speakers(commands: Commands) -> Report:
    """Generate each scene with the trained file of `commands`, and measure."""
    folder = commands.result / "two"
    folder.mkdir(parents=True, exist_ok=True)
    rows, own, other = [], [], []
    for seed, pair in zip(SCENES, PAIRS, strict=True):
        sounds = [commands.media / "unseen" / f"speech_{i}.flac" for i in pair]
        video = folder / f"two_{seed}.mp4"
        commands.run(_command(commands, draw_picture(seed, folder), sounds, video, seed))
        table = mouths_against_sounds(video, sounds)
        own += [table[0, 0], table[1, 1]]
        other += [table[0, 1], table[1, 0]]
        rows.append(f"| {seed} | {number(table[0, 0])} | {number(table[0, 1])} | {number(table[1, 1])} | "
                    f"{number(table[1, 0])} |")
    heads = ("| picture | left mouth, left sound | left mouth, right sound | right mouth, right sound | right mouth, "
             "left sound |")
    text = "\n".join([f"Two speakers: {commands.folder}", "", heads, "|---|---|---|---|---|", *rows]) + "\n"
    return Report(text, all(r >= OWN for r in own) and all(abs(r) <= OTHER for r in other))


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


def _command(commands: Commands, picture: Path, sounds: list[Path], video: Path, seed: int) -> list[str]:
    words = generate_command(commands.recipe, commands.lora("after"), Path("unused"), video)
    at = words.index("--from_file")
    words[at:at + 2] = ["--image_path", str(picture), "--audio", str(sounds[0]), "--audio2", str(sounds[1]),
                        "--prompt", picture.with_suffix(".txt").read_text(encoding="utf-8").strip()]
    at = words.index("--video_size")
    words[at + 1:at + 3] = [str(SIZE), str(2 * SIZE)]
    return [*words, "--seed", str(seed)]


def mouths_against_sounds(video: Path, sounds: list[Path]) -> np.ndarray:
    """[mouth from the left, sound]: r at lag 0; NaN where fewer than two mouths are seen."""
    from common.media.sound import mono16k, read_sound
    from common.media.video import read_frames
    from common.timebase import AUDIO_SAMPLE_RATE_HZ
    from evaluation.mouth import NoMouthError, mouth_openings
    from evaluation.sync import correlation_at, speech_envelope

    frames = read_frames(video, fps=FPS)[:FRAMES]
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
