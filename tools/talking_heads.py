"""Render talking heads whose mouths follow a sound by known laws, as mp4 files with captions.

    python tools/talking_heads.py OUT_DIR --count 48 --size 128 --frames 81 --heads 1 --seed 0
    python tools/talking_heads.py examples/demo --demo

Writes OUT_DIR/head_000.mp4 with its sound and head_000.txt with its caption, and so on. With two heads each mouth
follows its own sound, which lies beside the clip as head_000.left.wav and head_000.right.wav; the clip's sound is
their sum. Needs espeak-ng (the speech engine) on the PATH.

The laws (tools/heads/laws.py): the mouth's opening at video frame k is ``clip(rms(k) / level, 0, 1) ** 0.7``, rms(k)
the Hann-weighted root mean square of the sound's 160 ms around the middle of frame k and level its 95th percentile
over the clip; its spread follows the balance of treble and bass. Nothing else moves the mouth.
"""

import argparse
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import ConfigError, raise_all, run  # noqa: E402


def checked(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The flags. Raises ConfigError with all that is wrong with them."""
    arguments = parser.parse_args()
    problems = []
    if arguments.size < 64 or arguments.size % 16:
        problems.append(f"--size {arguments.size}: give a multiple of 16 from 64 on")
    if arguments.frames < 1 or arguments.count < 1:
        problems.append(f"--frames {arguments.frames} --count {arguments.count}: give 1 or more")
    if arguments.seed < 0:
        problems.append(f"--seed {arguments.seed}: give 0 or more")
    raise_all(problems, ConfigError, "talking_heads")
    return arguments


def main() -> int:
    """Render `--count` clips, or the set that ships with the repository."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--count", type=int, default=48, help="how many clips")
    parser.add_argument("--size", type=int, default=128, help="height of the picture in pixels, a multiple of 16; it "
                        "is as wide for each head")
    parser.add_argument("--frames", type=int, default=81, help="video frames a clip, at 25 a second")
    parser.add_argument("--heads", type=int, choices=(1, 2), default=1, help="heads in a picture")
    parser.add_argument("--seed", type=int, default=0, help="first scene; clip i shows scene seed + i")
    parser.add_argument("--demo", action="store_true", help="write the set of examples/demo: the clips into OUT/clips, "
                        "faces and speech that they do not hold into OUT/unseen; other flags are not looked at")
    arguments = checked(parser)

    from tools.heads.speech import need_engine
    from tools.heads.write import spoken_sounds, write_clip, write_demo

    need_engine()
    if arguments.demo:
        write_demo(arguments.out)
        return 0
    for i in range(arguments.count):
        seed = arguments.seed + i
        write_clip(arguments.out / f"head_{i:03d}", seed, spoken_sounds(seed, arguments.heads, arguments.frames),
                   size=arguments.size, frames=arguments.frames)
    return 0


if __name__ == "__main__":
    run(main)
