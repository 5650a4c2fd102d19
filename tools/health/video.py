"""A short video with sound, written and read back by the program's own media code."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
import tempfile
from typing import TYPE_CHECKING

from tools.health.finding import Finding, Patient

if TYPE_CHECKING:
    import numpy as np

FRAMES, WIDTH, HEIGHT, FPS = 30, 128, 96, Fraction(25)
RATE_HZ = 16_000
LEAST_PSNR_DB = 35.0
LEAST_CORRELATION = 0.98


def check_video(_: Patient) -> Iterator[Finding]:
    """H.264 and AAC: count, size, rate, picture and sound must come back."""
    import numpy as np

    from common.media.sound import Sound, read_sound
    from common.media.video import probe_video, read_frames, write_video

    pictures, samples = _pictures(), _sound()
    with tempfile.TemporaryDirectory(prefix="omnituner-doctor-") as folder:
        path = Path(folder) / "probe.mp4"
        write_video(path, iter(pictures), fps=FPS, sound=Sound(samples, RATE_HZ))
        info = probe_video(path)
        frames, sound = read_frames(path, fps=FPS), read_sound(path)
    psnr = 10 * np.log10(255**2 / np.mean((frames.astype(np.float64) - pictures[:len(frames)]) ** 2))
    length = min(sound.samples.shape[1], samples.shape[1])
    correlation = float(np.corrcoef(sound.samples[0, :length], samples[0, :length])[0, 1])
    found = (f"{info.codec} + AAC: {info.frames} frames of {info.width}x{info.height} at {float(info.fps or 0):g} fps, "
             f"PSNR {psnr:.1f} dB; sound of {sound.samples.shape[1]} samples, correlation {correlation:.4f}")
    facts = {"frames": info.frames == FRAMES == len(frames), "size": (info.width, info.height) == (WIDTH, HEIGHT),
             "frame rate": info.fps == FPS, "picture": bool(psnr >= LEAST_PSNR_DB),
             "sound's length": sound.samples.shape[1] == samples.shape[1],
             "sound": correlation >= LEAST_CORRELATION}
    wrong = [name for name, is_right in facts.items() if not is_right]
    if wrong:
        written = f"{FRAMES} frames of {WIDTH}x{HEIGHT} at {float(FPS):g} fps, {samples.shape[1]} samples"
        yield Finding("FAIL", "video", f"{found}: another {', '.join(wrong)} than was written ({written})",
                      "take PyAV's own build, which brings its FFmpeg: pip install --force-reinstall "
                      "--only-binary av av")
    else:
        yield Finding("ok", "video", found)


def _pictures() -> "np.ndarray":
    """A soft bright spot that moves over a gradient: uint8 ``[N H W 3]``."""
    import numpy as np

    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    pictures = np.empty((FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    for i in range(FRAMES):
        spot = 100 * np.exp(-((rows - HEIGHT / 2) ** 2 + (columns - 20 - 3 * i) ** 2) / 200)
        grey = 60 + columns / WIDTH * 80 + spot
        pictures[i] = np.clip(np.stack([grey, grey * 0.9, grey * 0.7], axis=-1), 0, 255)
    return pictures


def _sound() -> "np.ndarray":
    """A voice-like tone that swells with each syllable, float32 ``[1 T]``, as long as the pictures."""
    import numpy as np

    time_s = np.arange(round(FRAMES / FPS * RATE_HZ)) / RATE_HZ
    tone = sum(np.sin(2 * np.pi * 150 * n * time_s) / n for n in range(1, 6))
    return (0.25 * tone * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * time_s)))[None].astype(np.float32)
