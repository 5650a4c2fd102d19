"""How well the small wav2vec2 hears: a linear read-out of the mouth, fitted on synthesised speech, tested elsewhere.

    python -m tools.tiny.measure_audio WEIGHTS/wav2vec2-base-960h FILE… --speech speech.npz

fits on the utterances that training did not hear and prints r for each file, and for its pieces of 81 frames.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from common.errors import run
from tools.heads.laws import FPS, mouth_curves
from tools.tiny.bank import load_speech
from tools.tiny.speech import RATE_HZ
import wan
from wan.encoders.audio import AudioEncoder

RIDGE = 10.0
FRAMES = 81
HELD_OUT = 40
QUIET = 1e-4
"""Deviation of an opening below which a piece counts as silent."""


def rows_of(encoder: AudioEncoder, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All states of each video frame side by side ``N K*D``, and opening and spread ``N 2``."""
    frames = len(samples) * FPS // RATE_HZ
    waveform = torch.from_numpy(np.ascontiguousarray(samples))
    states = encoder.encode(waveform, sample_rate=RATE_HZ, fps=FPS, frames=frames)
    curves = mouth_curves(samples, RATE_HZ, frames)
    return states.flatten(1).double().cpu().numpy(), np.stack([curves.opening, curves.spread], 1)


@dataclass(frozen=True)
class ReadOut:
    """A ridge regression from the states to opening and spread."""

    centre: np.ndarray
    spread: np.ndarray
    weights: np.ndarray
    offset: np.ndarray

    @classmethod
    def fit(cls, encoder: AudioEncoder, sounds: Sequence[np.ndarray]) -> "ReadOut":
        """The regression over all frames of some sounds."""
        pairs = [rows_of(encoder, sound) for sound in sounds]
        x, y = (np.concatenate(part) for part in zip(*pairs, strict=True))
        centre, spread, offset = x.mean(0), x.std(0) + 1e-6, y.mean(0)
        x = (x - centre) / spread
        weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - offset))
        return cls(centre, spread, weights, offset)

    def r(self, encoder: AudioEncoder, sounds: Sequence[np.ndarray]) -> tuple[float, float]:
        """Correlations of opening and of spread over all frames of some sounds."""
        pairs = [rows_of(encoder, sound) for sound in sounds]
        x, y = (np.concatenate(part) for part in zip(*pairs, strict=True))
        guess = (x - self.centre) / self.spread @ self.weights + self.offset
        opening, spread = (float(np.corrcoef(guess[:, k], y[:, k])[0, 1]) for k in range(2))
        return opening, spread


def fit_and_test(folder: Path, fitted: Sequence[np.ndarray], tested: Sequence[np.ndarray]) -> dict[str, float]:
    """r of opening and spread on sounds other than those of the fit."""
    encoder = wan.load_audio_encoder(folder)
    opening, spread = ReadOut.fit(encoder, fitted).r(encoder, tested)
    return {"unheard_opening_r": round(opening, 3), "unheard_spread_r": round(spread, 3)}


def pieces(samples: np.ndarray) -> list[np.ndarray]:
    """Stretches of FRAMES video frames one after the other that are not silent; the whole sound if it is shorter."""
    size = FRAMES * RATE_HZ // FPS
    cut = [samples[start:start + size] for start in range(0, max(1, len(samples) - size + 1), size)]
    return [part for part in cut if part.std() > QUIET]


def main() -> int:
    """Fit, test on files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="folder of the audio encoder")
    parser.add_argument("files", type=Path, nargs="*", help="sounds to test the read-out on")
    parser.add_argument("--speech", type=Path, required=True, help="file of tools.tiny.speech that training used")
    settings = parser.parse_args()
    from common.media.sound import mono16k, read_sound

    encoder = wan.load_audio_encoder(settings.weights)
    unheard = load_speech(settings.speech)[-HELD_OUT:]
    half = len(unheard) // 2
    read_out = ReadOut.fit(encoder, unheard[:half])
    opening, spread = read_out.r(encoder, unheard[half:])
    print(f"unheard synthesised speech: opening r {opening:.3f}, spread r {spread:.3f}")
    means = []
    for path in settings.files:
        parts = pieces(mono16k(read_sound(path)))
        if not parts:
            print(f"{path.name}: silent")
            continue
        opening, spread = read_out.r(encoder, parts)
        means.append((opening, spread))
        print(f"{path.name}: opening r {opening:.3f}, spread r {spread:.3f} over {len(parts)} pieces", flush=True)
    if means:
        print("mean over files: opening r {:.3f}, spread r {:.3f}".format(*np.mean(means, axis=0)))
    return 0


if __name__ == "__main__":
    run(main)
