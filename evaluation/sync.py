"""How well a mouth follows a sound: the speech envelope, and its correlation with a measured mouth opening."""

from dataclasses import dataclass

from jaxtyping import Float, UInt8
import numpy as np

from evaluation.mouth import NoMouthError, mouth_opening

WINDOW_S = 0.160
"""A jaw follows loudness up to about 5 Hz; this window passes that much."""
LEVEL_PERCENTILE = 95
EXPONENT = 0.7
MIN_FRAMES = 12
"""Fewer overlapping frames than this give no correlation worth a number."""
STILL = 1e-3
"""Standard deviation below which a curve counts as constant; openings and envelopes reach about 0.3."""


@dataclass(frozen=True)
class SyncResult:
    """Pearson correlation of mouth and sound.

    `r`: as they stand. `best_lag`: frames by which the sound comes after the picture where the correlation is highest
    (positive: the sound is late), `r_at_best` the correlation there. All three are None where nothing could be
    measured; `reason` then says why.
    """

    r: float | None
    best_lag: int | None
    r_at_best: float | None
    reason: str = ""

    @property
    def is_available(self) -> bool:
        """Whether there are numbers."""
        return self.r is not None

    def __str__(self) -> str:
        if self.r is None:
            return f"unavailable: {self.reason}"
        return f"r {self.r:+.3f} at lag 0, best lag {self.best_lag:+d} frames (r {self.r_at_best:+.3f})"


def unavailable(reason: str) -> SyncResult:
    """The result that holds no number."""
    return SyncResult(None, None, None, reason)


def speech_envelope(samples: Float[np.ndarray, " T"], sample_rate: int, frames: int, fps: float
                    ) -> Float[np.ndarray, " N"]:
    """Loudness in 0…1 of the sound at each of `frames` video frames; the renderer opens its mouths by the same law.

    clip(rms(k) / level, 0, 1) ** 0.7. rms(k) is the root of the Hann-weighted mean square of the 160 ms around the
    middle of frame k, (k + 0.5) / fps seconds: sum(w x^2) / sum(w) over the samples that there are, with
    w(t) = 0.5 + 0.5 cos(2 pi t / 0.160) at t seconds from the middle. level is the 95th percentile of rms over the
    frames. 0 where the middle lies after the sound's end. Sample 0 sounds when frame 0 appears.
    """
    half = int(WINDOW_S / 2 * sample_rate)
    square = np.asarray(samples, np.float64) ** 2
    rms = np.zeros(frames)
    for k in range(frames):
        middle = (k + 0.5) / fps * sample_rate
        if middle >= len(square):
            break
        times = np.arange(max(0, int(middle) - half), min(len(square), int(middle) + half + 1))
        weights = 0.5 + 0.5 * np.cos(np.clip(2 * np.pi * (times - middle) / (WINDOW_S * sample_rate), -np.pi, np.pi))
        rms[k] = np.sqrt((weights * square[times[0]:times[-1] + 1]).sum() / weights.sum())
    level = np.percentile(rms, LEVEL_PERCENTILE)
    return np.clip(rms / max(level, 1e-6), 0, 1) ** EXPONENT


def correlation_at(opening: Float[np.ndarray, " N"], envelope: Float[np.ndarray, " N"], lag: int) -> float | None:
    """Pearson r of opening[k] and envelope[k + lag] over the frames that both have; None where it is not defined."""
    frames = len(opening)
    mouth = opening[max(0, -lag):frames - max(0, lag)]
    sound = envelope[max(0, lag):frames - max(0, -lag)]
    known = np.isfinite(mouth) & np.isfinite(sound)
    mouth, sound = mouth[known], sound[known]
    if len(mouth) < MIN_FRAMES or mouth.std() < STILL or sound.std() < STILL:
        return None
    return float(np.corrcoef(mouth, sound)[0, 1])


def sync_of(opening: Float[np.ndarray, " N"], envelope: Float[np.ndarray, " N"], max_lag: int = 12) -> SyncResult:
    """Correlate a mouth opening (NaN: not seen) with a speech envelope at every lag within ±`max_lag` frames."""
    if len(opening) != len(envelope):
        raise ValueError(f"{len(opening)} openings and {len(envelope)} envelope values; both need one a frame")
    seen = np.isfinite(opening)
    if seen.sum() < MIN_FRAMES:
        return unavailable(f"{seen.sum()} frames with a mouth; {MIN_FRAMES} are needed")
    if envelope[seen].std() < STILL:
        return unavailable("the sound is silent or constant")
    if opening[seen].std() < STILL:
        return unavailable("the mouth does not move")
    values = {lag: correlation_at(opening, envelope, lag) for lag in range(-max_lag, max_lag + 1)}
    defined = {lag: r for lag, r in values.items() if r is not None}
    best = max(defined, key=lambda lag: (defined[lag], -abs(lag)))
    return SyncResult(defined[0], best, defined[best])


def measure_sync(frames: UInt8[np.ndarray, "N H W 3"], samples: Float[np.ndarray, " T"], *, sample_rate: int,
                 fps: float, max_lag: int = 12) -> SyncResult:
    """The sync of a video with its sound: mouth opening, envelope, correlation; unavailable where no mouth is found."""
    try:
        opening = mouth_opening(frames)
    except NoMouthError as error:
        return unavailable(str(error))
    return sync_of(opening, speech_envelope(samples, sample_rate, len(frames), fps), max_lag)
