"""Speech to train the small set on: random sentences in several languages and voices, spoken by espeak-ng.

    python -m tools.tiny.speech speech.npz --count 240

The file holds `samples` (int16, 16 kHz mono, all utterances one after the other) and `ends` (last sample of each).
"""

import argparse
from pathlib import Path

import numpy as np

from common.atomic import atomic_path
from common.errors import run
from tools.heads.speech import VOICES, need_engine, random_sentence, speak

RATE_HZ = 16_000


def random_utterance(rng: np.random.Generator) -> np.ndarray:
    """A random sentence in a random voice at 16 kHz, at a random loudness and speed."""
    import soxr

    language, text = random_sentence(rng)
    loud = float(rng.uniform(0.3, 1.0))
    samples, rate = speak(language, str(rng.choice(VOICES)), text, int(rng.integers(120, 190)))
    return loud * soxr.resample(samples, rate, RATE_HZ)


def main() -> int:
    """Speak and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="npz file to write")
    parser.add_argument("--count", type=int, default=240, help="utterances")
    parser.add_argument("--seed", type=int, default=0, help="draws sentences, voices, loudness and speed")
    arguments = parser.parse_args()
    need_engine()
    rng = np.random.default_rng(arguments.seed)
    parts = [random_utterance(rng) for _ in range(arguments.count)]
    samples = np.concatenate([(np.clip(part, -1, 1) * 32767).astype(np.int16) for part in parts])
    with atomic_path(arguments.out) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, samples=samples, ends=np.cumsum([len(part) for part in parts]))
    print(f"{arguments.count} utterances, {len(samples) / RATE_HZ:.0f} s, in {arguments.out}")
    return 0


if __name__ == "__main__":
    run(main)
