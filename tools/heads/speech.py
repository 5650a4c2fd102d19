"""Synthesised speech: sentences in several languages and voices, spoken by espeak-ng, which is called only here."""

from pathlib import Path
import shutil
import subprocess
import tempfile

from jaxtyping import Float32
import numpy as np

from common.errors import UserError

ENGINE = "espeak-ng"
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
"""Language → words that sentences of the training clips are drawn from."""
VOICES = ("m1", "m3", "m5", "m7", "f1", "f2", "f4", "f5")
"""Voices of the training clips, in the engine's names: men and women."""
UNSEEN_WORDS = {
    "nl": "vanavond gaan wij met de trein naar het strand omdat mijn zuster daar een klein huis heeft gevonden en "
          "iedereen wil graag nog een keer samen vis eten",
    "pt-br": "amanhã cedo a minha avó vai fazer pão de queijo para todos os vizinhos e depois vamos ouvir música na "
             "praça até chegar a noite",
    "sv": "igår kväll såg vi en stor älg bredvid vägen och sedan berättade farfar en lång historia om hur han byggde "
          "båten när han var ung",
    "cs": "dnes večer půjdeme do divadla protože moje sestra tam hraje hlavní roli a potom si dáme teplou polévku u "
          "babičky",
    "ro": "mâine dimineață mergem la munte cu prietenii noștri și dacă nu plouă vom face un foc mare lângă râul care "
          "trece prin pădure",
}
"""Language → words of the utterances that no training hears."""
UNSEEN_VOICES = ("f3", "m2", "m4", "m6", "m8")


def speak(language: str, voice: str, text: str, speed: int = 150) -> tuple[Float32[np.ndarray, " T"], int]:
    """(samples, sample rate in Hz) of `text` spoken in a voice such as ``f3`` at `speed` words a minute.

    Raises UserError where espeak-ng is missing or does not know the voice.
    """
    need_engine()
    import soundfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        command = [ENGINE, "-v", f"{language}+{voice}", "-s", str(speed), "-w", str(path), text]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not path.is_file():
            raise UserError(f"espeak-ng could not speak '{language}+{voice}': {done.stderr.strip() or 'no sound'}. "
                            "Install its voices (apt install espeak-ng-data).")
        return soundfile.read(path, dtype="float32")


def need_engine() -> None:
    """Raise UserError where espeak-ng is not installed."""
    if shutil.which(ENGINE) is None:
        raise UserError("espeak-ng is not on the PATH; it speaks the sentences. Install it (apt install espeak-ng).")


def random_sentence(rng: np.random.Generator, words: tuple[int, int] = (5, 12), language: str | None = None
                    ) -> tuple[str, str]:
    """(language, text) of some `words` (fewest, most), now and then with a pause; by default in a random language."""
    table = WORDS | UNSEEN_WORDS
    language = language or str(rng.choice(list(WORDS)))
    chosen = [str(word) for word in rng.choice(table[language].split(), int(rng.integers(words[0], words[1] + 1)))]
    if rng.random() < 0.4:
        chosen[len(chosen) // 2] += ","
    return language, " ".join(chosen) + "."
