"""Render talking heads whose mouths follow a sound by a known law, as mp4 files with captions.

    python tools/talking_heads.py OUT_DIR --count 6 --size 128 --seed 0

Needs espeak-ng (the speech engine) on the PATH. The law (`evaluation.sync.speech_envelope`): the mouth's opening at
video frame k is ``clip(rms(k) / level, 0, 1) ** 0.7``, rms(k) the root mean square of the sound's 40 ms around the
middle of frame k and level its 95th percentile over the clip. Nothing else moves the mouth.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import UserError, run  # noqa: E402

FPS = 25
SUPERSAMPLE = 4

SENTENCES = (
    ("en-us", "woman", "The morning train was late again, so we talked about the weather."),
    ("en-gb", "man", "Please put the yellow box on the table and open it slowly."),
    ("de", "woman", "Heute scheint die Sonne, und wir gehen zusammen in den Garten."),
    ("fr-fr", "man", "Bonjour, je voudrais deux tasses de café et un verre d'eau."),
    ("es", "woman", "Mi hermano canta por la mañana y toca la guitarra por la noche."),
    ("it", "man", "Domani andiamo al mare con gli amici e torniamo la sera."),
    ("en-us", "man", "Seven small boats came home before the storm began to blow."),
    ("en-gb", "woman", "I never said that music was easy, only that it was worth it."),
)
SKINS = {"light": (244, 206, 178), "tan": (214, 164, 122), "brown": (156, 104, 70), "dark": (98, 64, 46)}
HAIRS = {"blond": (214, 176, 92), "brown": (92, 58, 34), "black": (30, 26, 28), "red": (164, 72, 34),
         "grey": (150, 150, 150)}
WALLS = {"blue": (58, 96, 150), "green": (70, 120, 84), "ochre": (178, 140, 72), "grey": (120, 122, 128),
         "plum": (104, 66, 106)}
SHIRTS = {"red": (170, 42, 48), "white": (230, 230, 226), "navy": (34, 44, 88), "green": (44, 110, 70)}
UNSEEN = ("en-us", "woman", "Hello there, this voice was never heard in training.")


@dataclass(frozen=True)
class Face:
    """Everything that stays the same in one clip; colours are RGB in 0…255, lengths in units of the picture's side."""

    skin: tuple[int, int, int]
    hair: tuple[int, int, int]
    shirt: tuple[int, int, int]
    background: tuple[tuple[int, ...], tuple[int, ...]]
    eye: tuple[int, ...]
    width: float
    height: float
    long_hair: bool
    light: float
    words: str


def draw_face(seed: int) -> Face:
    """A face from a seed."""
    import numpy as np

    rng = np.random.default_rng([seed, 11])
    skin, hair, wall, shirt = (str(rng.choice(list(table))) for table in (SKINS, HAIRS, WALLS, SHIRTS))
    long_hair = bool(rng.integers(2))
    base = np.array(WALLS[wall])
    return Face(
        skin=SKINS[skin], hair=HAIRS[hair], shirt=SHIRTS[shirt],
        background=(tuple(int(v) for v in base), tuple(int(v) for v in (base * 0.55))),
        eye=tuple(int(v) for v in rng.integers(30, 120, 3)),
        width=float(rng.uniform(0.26, 0.31)), height=float(rng.uniform(0.35, 0.40)), long_hair=long_hair,
        light=float(rng.uniform(-0.25, 0.25)),
        words=f"a person with {skin} skin and {'long' if long_hair else 'short'} {hair} hair in a {shirt} shirt, "
              f"{wall} wall")


def mouth_opening(samples, sample_rate: int, frames: int):
    """Opening in 0…1 of every video frame: the sound's envelope at this rate. samples `T` float mono."""
    from evaluation.sync import speech_envelope

    return speech_envelope(samples, sample_rate, frames, FPS)


def render_frame(face: Face, opening: float, sway: tuple[float, float], blink: bool, size: int):
    """One picture `size` x `size` x 3 uint8; `sway` moves the head, in units of the picture's side."""
    import cv2
    import numpy as np

    side = size * SUPERSAMPLE

    def point(x: float, y: float) -> tuple[int, int]:
        return round(x * side), round(y * side)

    def ellipse(x: float, y: float, rx: float, ry: float, colour: tuple[int, ...]) -> None:
        cv2.ellipse(picture, point(x, y), point(max(rx, 0), max(ry, 0)), 0, 0, 360, colour, -1, cv2.LINE_AA)

    top, bottom = (np.array(c, np.float32) for c in face.background)
    ramp = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    picture = np.repeat(top * (1 - ramp) + bottom * ramp, side, axis=1).astype(np.uint8)
    x, y = 0.5 + sway[0], 0.47 + sway[1]
    shade = tuple(int(v * 0.8) for v in face.skin)
    ellipse(0.5, 1.12, 0.46, 0.32, face.shirt)
    if face.long_hair:
        ellipse(x, y + 0.10, face.width * 1.22, face.height * 1.15, face.hair)
    cv2.rectangle(picture, point(x - 0.08, y + 0.2), point(x + 0.08, y + 0.46), shade, -1)
    ellipse(x, y - 0.07, face.width * 1.10, face.height * 1.02, face.hair)
    ellipse(x, y + 0.02, face.width, face.height * 0.96, face.skin)
    for side_x in (-1, 1):
        eye_x, eye_y = x + side_x * face.width * 0.42, y - 0.05
        ellipse(eye_x, eye_y, 0.050, 0.006 if blink else 0.028, (245, 245, 245))
        if not blink:
            ellipse(eye_x, eye_y, 0.021, 0.022, face.eye)
            ellipse(eye_x, eye_y, 0.010, 0.011, (10, 10, 10))
        cv2.line(picture, point(eye_x - 0.05, eye_y - 0.06), point(eye_x + 0.05, eye_y - 0.065), face.hair, side // 60,
                 cv2.LINE_AA)
    cv2.line(picture, point(x, y + 0.0), point(x + 0.018, y + 0.075), shade, side // 90, cv2.LINE_AA)
    mouth_y = y + 0.185
    ellipse(x, mouth_y, 0.105 - 0.02 * opening, 0.020 + 0.062 * opening, (176, 70, 72))
    ellipse(x, mouth_y, 0.085 - 0.02 * opening, 0.060 * opening, (52, 14, 20))
    if opening > 0.35:
        ellipse(x, mouth_y - 0.040 * opening, 0.052, 0.010, (240, 238, 230))
    across = np.linspace(1 - face.light, 1 + face.light, side, dtype=np.float32)[None, :, None]
    lit = np.clip(picture.astype(np.float32) * across, 0, 255).astype(np.uint8)
    return cv2.resize(lit, (size, size), interpolation=cv2.INTER_AREA)


def render_clip(face: Face, opening, size: int, seed: int):
    """All pictures of a clip: `N size size 3` uint8; the head sways slowly and blinks, the mouth obeys `opening`."""
    import numpy as np

    rng = np.random.default_rng([seed, 23])
    phase, speed = rng.uniform(0, 6.28, 2), rng.uniform(0.2, 0.5, 2)
    blinks = {int(b) + d for b in np.cumsum(rng.uniform(35, 90, 50)) for d in (0, 1, 2)}
    return np.stack([
        render_frame(face, float(o), (0.018 * np.sin(6.28 * speed[0] * k / FPS + phase[0]),
                                      0.010 * np.sin(6.28 * speed[1] * k / FPS + phase[1])), k in blinks, size)
        for k, o in enumerate(opening)])


def speak(language: str, voice: str, text: str, path: Path) -> None:
    """Write `text` spoken by espeak-ng to a mono WAV file."""
    variant = {"woman": "f3", "man": "m3"}[voice]
    subprocess.run(["espeak-ng", "-v", f"{language}+{variant}", "-s", "150", "-w", str(path), text], check=True)


def make_clip(folder: Path, name: str, line: tuple[str, str, str], *, seed: int, size: int, frames: int) -> None:
    """Write `name`.mp4 with its sound and `name`.txt with its caption."""
    import numpy as np
    import soundfile

    from common.media.sound import Sound
    from common.media.video import write_video

    with tempfile.TemporaryDirectory() as scratch:
        wave = Path(scratch) / "speech.wav"
        speak(*line, wave)
        samples, sample_rate = soundfile.read(wave, dtype="float32")
    length = round(frames / FPS * sample_rate)
    samples = np.pad(samples, (0, max(0, length - len(samples))))[:length]
    face = draw_face(seed)
    pictures = render_clip(face, mouth_opening(samples, sample_rate, frames), size, seed)
    write_video(folder / f"{name}.mp4", pictures, fps=FPS, sound=Sound(samples[None], sample_rate), tags={})
    (folder / f"{name}.txt").write_text(f"A talking head: {face.words}.\n", encoding="utf-8")


def main() -> int:
    """Render `--count` clips, a face and a speech that none of them holds."""
    import cv2

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to (clips go into OUT/clips)")
    parser.add_argument("--count", type=int, default=6, help="how many clips")
    parser.add_argument("--size", type=int, default=128, help="side of the square picture in pixels, a multiple of 16")
    parser.add_argument("--frames", type=int, default=65, help="video frames a clip, at 25 a second")
    parser.add_argument("--seed", type=int, default=0, help="first face; clip i takes face seed + i")
    arguments = parser.parse_args()
    if shutil.which("espeak-ng") is None:
        raise UserError("espeak-ng is not on the PATH; it speaks the sentences. Install it (apt install espeak-ng).")
    clips = arguments.out / "clips"
    clips.mkdir(parents=True, exist_ok=True)
    for i in range(arguments.count):
        make_clip(clips, f"head_{i:03d}", SENTENCES[i % len(SENTENCES)], seed=arguments.seed + i, size=arguments.size,
                  frames=arguments.frames)
    speak(*UNSEEN, arguments.out / "speech.wav")
    picture = render_frame(draw_face(arguments.seed + 1000), 0.0, (0.0, 0.0), False, arguments.size)
    cv2.imwrite(str(arguments.out / "face.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return 0


if __name__ == "__main__":
    run(main)
