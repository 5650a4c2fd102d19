"""Banks of rendered clips that trainings ask for, kept in a folder if one is given."""

import argparse
import json
from pathlib import Path

import numpy as np

from common.atomic import write_text
from common.errors import ConfigError
from tools.tiny.bank import Bank, make_bank

FRAMES, SIZE = 81, 128


def add_bank_flags(parser: argparse.ArgumentParser, clips: int) -> None:
    """Flags that say which clips a training sees."""
    parser.add_argument("--speech", type=Path, required=True, help="file of tools.tiny.speech")
    parser.add_argument("--clips", type=int, default=clips, help=f"rendered clips to train on (default {clips})")
    parser.add_argument("--frames", type=int, default=FRAMES, help=f"4n+1 frames of a clip (default {FRAMES})")
    parser.add_argument("--size", type=int, default=SIZE, help="height of the pictures, a multiple of 16 (default "
                        f"{SIZE})")
    parser.add_argument("--banks", type=Path, help="folder to keep rendered clips in and to take them from; one speech "
                        "file a folder")
    parser.add_argument("--render_only", action="store_true", help="fill --banks and stop: cores can render ahead "
                        "while a GPU is busy")


def bank_of(settings: argparse.Namespace, *, clips: int, seed: int, heads: int = 1) -> Bank:
    """The bank of these settings: from the folder if it is there, else rendered, and then put there.

    Raises ConfigError for numbers that the VAE cannot take, or a missing file of speech.
    """
    if settings.frames % 4 != 1 or settings.size % 16 or clips < 1:
        raise ConfigError(f"--clips {clips}, --frames {settings.frames}, --size {settings.size}: the VAE takes 4n+1 "
                          "frames and the DiT sizes in multiples of 16; at least one clip is needed.")
    if not settings.speech.is_file():
        raise ConfigError(f"{settings.speech}: there is no such file of speech. Make it: python -m tools.tiny.speech "
                          f"{settings.speech} --count 240.")
    place = None
    if settings.banks is not None:
        place = settings.banks / f"{clips}x{settings.frames}x{settings.size}-heads{heads}-seed{seed}"
        if (place / "words.json").is_file():
            return _load(place)
    bank = make_bank(settings.speech, clips=clips, frames=settings.frames, size=settings.size, seed=seed, heads=heads)
    if place is not None:
        _save(bank, place)
    return bank


def _save(bank: Bank, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for name in ("pictures", "openings", "boxes"):
        np.save(place / f"{name}.npy", getattr(bank, name))
    write_text(place / "words.json", json.dumps(bank.captions))  # last: a bank is whole when it is there


def _load(place: Path) -> Bank:
    pictures, openings, boxes = (np.load(place / f"{name}.npy") for name in ("pictures", "openings", "boxes"))
    return Bank(pictures, json.loads((place / "words.json").read_text(encoding="utf-8")), openings, boxes)
