"""Measure how well the rendered, reconstructed or generated mouth of a video follows its sound; prints one line.

    python tools/sync_meter.py talking.mp4 [--audio other.wav] [--plot sync.png]

Pearson correlation of mouth opening and speech envelope as they stand, and the lag within ±12 frames where it is
highest (positive: the sound comes after the picture). "unavailable" and why, where no mouth is found or nothing is
said.
"""

import argparse
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common.errors import run  # noqa: E402

LARGE = 320
USUAL_FPS = 25


def main() -> int:
    """Read, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path, help="a video of one talking head")
    parser.add_argument("--audio", type=Path, help="sound to measure against, from its start; default: the video's own")
    parser.add_argument("--plot", type=Path, help="PNG to write: both curves, and the correlation at every lag")
    arguments = parser.parse_args()

    from common.media.sound import mono16k, read_sound
    from common.media.video import probe_video, read_frames
    from common.timebase import AUDIO_SAMPLE_RATE_HZ
    from evaluation.mouth import NoMouthError, mouth_opening
    from evaluation.plot import plot_sync
    from evaluation.sync import speech_envelope, sync_of, unavailable

    info = probe_video(arguments.video)
    fps = float(info.fps or USUAL_FPS)
    shrink = min(1.0, LARGE / min(info.width, info.height))
    size = None if shrink == 1 else (round(info.width * shrink), round(info.height * shrink))
    sound = read_sound(arguments.audio or arguments.video)
    samples = mono16k(sound) if arguments.audio else mono16k(sound, from_s=info.start_s)
    frames = read_frames(arguments.video, fps=fps, size=size)
    envelope = speech_envelope(samples, AUDIO_SAMPLE_RATE_HZ, len(frames), fps)
    try:
        opening = mouth_opening(frames)
        result = sync_of(opening, envelope)
    except NoMouthError as error:
        result = unavailable(str(error))
    else:
        if arguments.plot:
            plot_sync(arguments.plot, {"mouth opening": opening}, envelope, title=f"{arguments.video.name}  {result}")
    print(f"{arguments.video.name}: {result}")
    return 0


if __name__ == "__main__":
    run(main)
