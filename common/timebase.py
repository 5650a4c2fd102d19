"""All arithmetic between seconds, video frames, latent frames and audio samples."""

from fractions import Fraction
import math

VAE_TEMPORAL_STRIDE = 4
"""Video frames that one latent frame covers (the first latent frame covers one); the same in every Wan VAE."""

AUDIO_SAMPLE_RATE_HZ = 16_000
"""Rate at which every audio encoder hears."""


def is_valid_frame_count(frames: int) -> bool:
    """Whether `frames` is 4n+1 with n >= 0, the only counts that the causal VAE represents without loss."""
    return frames >= 1 and (frames - 1) % VAE_TEMPORAL_STRIDE == 0


def floor_frame_count(frames: int) -> int:
    """Largest 4n+1 that is not above `frames` (musubi-tuner's rounding of `target_frames`). `frames` >= 1."""
    return (frames - 1) // VAE_TEMPORAL_STRIDE * VAE_TEMPORAL_STRIDE + 1


def ceil_frame_count(frames: int) -> int:
    """Smallest 4n+1 that is not below `frames`. `frames` >= 1."""
    return -(-(frames - 1) // VAE_TEMPORAL_STRIDE) * VAE_TEMPORAL_STRIDE + 1


def latent_frame_count(frames: int) -> int:
    """Latent frames of a clip of `frames` = 4n+1 video frames: n+1."""
    assert is_valid_frame_count(frames), frames
    return (frames - 1) // VAE_TEMPORAL_STRIDE + 1


def video_frame_count(latent_frames: int) -> int:
    """Video frames that `latent_frames` decode to: 4(T-1)+1."""
    return (latent_frames - 1) * VAE_TEMPORAL_STRIDE + 1


def as_fraction(fps: float | int | str | Fraction) -> Fraction:
    """Frame rate as an exact fraction; 23.976, 29.97 and 59.94 become n*1000/1001."""
    if isinstance(fps, Fraction):
        return fps
    value = Fraction(str(fps))
    for nominal in (24, 30, 48, 60, 120):
        ntsc = Fraction(nominal * 1000, 1001)
        if abs(float(value) - float(ntsc)) < 0.006:
            return ntsc
    return value


def frames_in(duration_s: float, fps: float | Fraction) -> int:
    """Video frames needed to cover `duration_s`: ceil(duration * fps), a thousandth of a frame forgiven."""
    return max(0, math.ceil(duration_s * float(fps) - 1e-3))


def omniavatar_frames_for_tokens(max_tokens: int, height: int, width: int) -> int:
    """OmniAvatar's clip length for a token budget: int(max_tokens*1024/(H*W)) brought to 4n+1 (at least 5).

    Source: OmniAvatar `scripts/inference.py`; L = (L//4)*4+1 where L is no multiple of 4, else L-3.
    """
    frames = int(max_tokens * 16 * 16 * 4 / (height * width))
    frames = frames // 4 * 4 + 1 if frames % 4 else frames - 3
    return max(frames, 5)


def full_chunk_rows(rows: int, longest: int, overlap: int) -> int:
    """Rows of sound after padding, so that every chunk of `longest` frames is full; never fewer than `rows`.

    The first chunk hears longest - 1 rows (its frame 0 is the reference picture), each later one longest - overlap new
    ones. Source: OmniAvatar `scripts/inference.py` (audio.md 1.1, step 5).
    """
    first, step = longest - 1, longest - overlap
    if rows < first:
        return rows + first - rows % first
    return rows + -(rows - first) % step
