"""Speech to train the small set on: random sentences in several languages and voices, spoken by espeak-ng.

    python -m tools.tiny.speech speech.npz --count 240

The file holds `samples` (int16, 16 kHz mono, all utterances one after the other) and `ends` (last sample of each).
"""

import argparse
from pathlib import Path
import subprocess
import tempfile

import numpy as np

RATE_HZ = 16_000
WORDS = {
    "en-us": "the a river morning quiet window opens slowly seven children sing about red apples and green birds while "
             "nobody knows where their father went after lunch maybe tomorrow we will walk home together",
    "en-gb": "please could you bring another cup of tea before they close because it is raining again and my brother "
             "forgot his umbrella somewhere between station and office this afternoon",
    "de": "heute morgen haben wir zwischen bergen und wald viele kleine vögel gehört aber niemand wollte später noch "
          "einmal ohne jacke nach hause gehen weil es plötzlich sehr kalt wurde",
    "fr-fr": "nous avons mangé une grande pomme rouge pendant que les enfants jouaient dans la cour avec leurs amis et "
             "personne ne savait pourquoi le chien dormait toujours sous la table",
    "es": "ayer por la tarde mi hermana compró tres libros nuevos y después caminamos despacio hasta la playa donde "
          "los niños cantaban canciones muy bonitas cerca del agua",
    "it": "domani mattina andremo con il treno fino al mare e mangeremo un gelato grande mentre i bambini giocano "
          "sulla spiaggia sotto il sole caldo di luglio",
    "pl": "jutro rano pojedziemy nad morze a potem wrócimy do domu ponieważ wieczorem przyjdą nasi przyjaciele z "
          "miasta",
    "tr": "bugün sabah erken kalktık ve güzel bir kahvaltı yaptık sonra çocuklar bahçede uzun süre top oynadılar",
}
VOICES = ("m1", "m3", "m5", "m7", "f1", "f2", "f4", "f5")


def random_sentence(rng: np.random.Generator) -> tuple[str, str]:
    """(language, text): 5 to 12 words, now and then with a pause."""
    language = str(rng.choice(list(WORDS)))
    words = [str(word) for word in rng.choice(WORDS[language].split(), int(rng.integers(5, 13)))]
    if rng.random() < 0.4:
        words[len(words) // 2] += ","
    return language, " ".join(words) + "."


def speak(language: str, voice: str, speed: int, text: str) -> np.ndarray:
    """The text as float32 samples at 16 kHz."""
    import soundfile
    import soxr

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-v", f"{language}+{voice}", "-s", str(speed), "-w", str(path), text], check=True)
        samples, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(samples, rate, RATE_HZ)


def main() -> None:
    """Speak and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=240, help="utterances")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    parts = []
    for _ in range(arguments.count):
        language, text = random_sentence(rng)
        loud = float(rng.uniform(0.3, 1.0))
        parts.append(loud * speak(language, str(rng.choice(VOICES)), int(rng.integers(120, 190)), text))
    samples = np.concatenate([(np.clip(part, -1, 1) * 32767).astype(np.int16) for part in parts])
    np.savez_compressed(arguments.out, samples=samples, ends=np.cumsum([len(part) for part in parts]))
    print(f"{arguments.count} utterances, {len(samples) / RATE_HZ:.0f} s, in {arguments.out}")


if __name__ == "__main__":
    main()
