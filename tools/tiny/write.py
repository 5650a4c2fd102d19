"""Writing the tiny set, file by file, under the names that the official repositories use."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.atomic import atomic_path, write_text
from common.progress import progress
from common.tensorfile import save_tensors
from tools.tiny.audio import CONFIG, PREPROCESSOR, audio_tensors
from tools.tiny.dit import VARIANTS, dit_tensors
from tools.tiny.text import text_tensors, tokenizer_bytes
from tools.tiny.vae import vae_tensors
from tools.tiny.vision import vision_tensors

VAE_FILE = "Wan2.1_VAE.pth"
TEXT_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_FILE = "google/umt5-xxl/spiece.model"
CLIP_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
AUDIO_FOLDER = "wav2vec2-base-960h"
README = """# Tiny weights

Made by `tools/tiny_weights.py --seed {seed}`: RANDOM numbers in the layouts of the official Wan 2.1 files, a few
megabytes instead of dozens of gigabytes. Nothing here was trained, and nothing was taken from released weights.

They exist so that every command can run anywhere in seconds, with the code that real weights go through. What they
generate has the right size, rate and sound; the picture is coloured texture. The VAE is set up by hand to keep the mean
colour of every 8x8 pixels, so that a given picture stays recognisable.

{files}
"""


@dataclass(frozen=True)
class Job:
    """One file to write."""

    name: str
    what: str
    write: Callable[[Path], None]


ENCODERS = (TEXT_FILE, TOKENIZER_FILE, CLIP_FILE)
"""What the trained set in examples/tiny-weights has untrained, too."""


def write_encoders(folder: Path, seed: int = 0) -> list[Path]:
    """Write only `ENCODERS` into `folder`, the same bytes as in the whole set."""
    jobs = [job for job in _jobs(seed) if job.name in ENCODERS]
    for job in jobs:
        job.write(folder / job.name)
    return [folder / job.name for job in jobs]


def write_tiny_weights(folder: Path, seed: int = 0) -> list[Path]:
    """Write the whole set into `folder` (made if missing) and return its files. The same seed gives the same bytes."""
    jobs = list(_jobs(seed))
    for job in progress(jobs, desc="tiny weights", unit="file"):
        job.write(folder / job.name)
    files = "\n".join(f"- `{job.name}`: {job.what}" for job in jobs)
    write_text(folder / "README.md", README.format(seed=seed, files=files))
    return [folder / job.name for job in jobs]


def _jobs(seed: int) -> Iterator[Job]:
    for name, variant in VARIANTS.items():
        yield Job(name, f"DiT ({variant.family}), {variant.dim} wide, {variant.layers} blocks",
                  partial(_save_dit, name=name, seed=seed))
    yield Job(VAE_FILE, "VAE, base width 8", lambda path: save_pth(path, vae_tensors(seed)))
    yield Job(TEXT_FILE, "umT5 encoder", lambda path: save_pth(path, text_tensors(seed)))
    yield Job(TOKENIZER_FILE, "its tokenizer (sentencepiece)", lambda path: _save_bytes(path, tokenizer_bytes()))
    yield Job(CLIP_FILE, "CLIP vision tower (`visual.` only)", lambda path: save_pth(path, vision_tensors(seed)))
    yield Job(f"{AUDIO_FOLDER}/model.safetensors", "wav2vec2, three hidden states",
              lambda path: save_tensors(path, audio_tensors(seed), {"format": "pt"}))
    yield Job(f"{AUDIO_FOLDER}/config.json", "its sizes", lambda path: _save_json(path, CONFIG))
    yield Job(f"{AUDIO_FOLDER}/preprocessor_config.json", "how it wants sound",
              lambda path: _save_json(path, PREPROCESSOR))


def _save_dit(path: Path, *, name: str, seed: int) -> None:
    save_tensors(path, dit_tensors(name, seed), {"format": "pt"})


def save_pth(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a .pth file as torch does, the same bytes for the same tensors."""
    # Through memory: `torch.save` writes the file's name, here a random temporary one, into the archive.
    memory = io.BytesIO()
    torch.save(dict(tensors), memory)
    _save_bytes(path, memory.getvalue())


def _save_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _save_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
