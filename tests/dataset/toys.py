"""Tiny media, and encoders that need no weights but take their numbers from a file like real ones."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from common.features import FeatureSpec, TensorSpec
from common.media.item import Media
from dataset.config import load_dataset_config
from dataset.jobs import FeatureJob
from dataset.media import load_media
from dataset.open import Dataset, open_dataset
from dataset.store import CacheStore
from dataset.work import share, to_do, work_list

MakeVideo = Callable[..., Path]


def make_picture(path: Path, size: tuple[int, int] = (48, 32), *, seed: int = 0, caption: str | None = "a picture"
                 ) -> Path:
    """A PNG of noise and its caption."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def make_sound(path: Path, seconds: float, rate: int = 16000) -> Path:
    """A WAV of noise."""
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.random.default_rng(1).uniform(-0.2, 0.2, round(seconds * rate)).astype(np.float32), rate)
    return path


def write_dataset(folder: Path, text: str) -> Path:
    """`dataset.toml` in `folder`; ``{d}`` in the text becomes the folder."""
    path = folder / "dataset.toml"
    path.write_text(text.replace("{d}", folder.as_posix()), encoding="utf-8")
    return path


def opened(path: Path, **options: object) -> Dataset:
    """The dataset of a TOML."""
    return open_dataset(load_dataset_config(path), **options)  # type: ignore[arg-type]


CLIP_KEY = ("source", "span", "size")


class ToyEncoder:
    """Base: an encoder whose numbers come from a small weights file."""

    spec: FeatureSpec
    needs: tuple[str, ...]

    def __init__(self, weights: Path, **options: str) -> None:
        self.weights = weights
        self._options = options

    def options(self) -> dict[str, str]:
        return self._options

    def weights_paths(self) -> tuple[Path, ...]:
        return (self.weights,)


class ToyLatents(ToyEncoder):
    """Mean colour of each latent's pixels in 16 channels."""

    spec = FeatureSpec("latents", 1, CLIP_KEY, (TensorSpec("latents", "16 F H W"),))  # type: ignore[arg-type]
    needs = ("frames",)

    def encode(self, media: Media) -> dict[str, Tensor]:
        return {"latents": _pooled(getattr(media, self.needs[0])).expand(16, -1, -1, -1)}


class ToyControl(ToyLatents):
    """The same of the control video."""

    spec = FeatureSpec("control_latents", 1, CLIP_KEY, (TensorSpec("latents", "16 F H W"),))  # type: ignore[arg-type]
    needs = ("control",)


class ToyReference(ToyEncoder):
    """One latent frame of the reference picture."""

    spec = FeatureSpec("reference_latents", 1, CLIP_KEY, (TensorSpec("latents", "16 1 H W"),))  # type: ignore[arg-type]
    needs = ("reference",)

    def encode(self, media: Media) -> dict[str, Tensor]:
        assert media.reference is not None
        return {"latents": _pooled(media.reference[None]).expand(16, -1, -1, -1)}


class ToyText(ToyEncoder):
    """A row for each letter."""

    spec = FeatureSpec("text", 1, ("source",), (TensorSpec("hidden", "L D", batching="list"),),
                       command="cache_text_encoder_outputs.py")
    needs = ("caption",)

    def encode(self, media: Media) -> dict[str, Tensor]:
        assert media.caption is not None
        letters = [float(ord(letter)) for letter in media.caption] or [0.0]
        return {"hidden": torch.tensor(letters)[:, None].expand(-1, 4)}


class ToyAudio(ToyEncoder):
    """Loudness of each video frame, and its number."""

    needs = ("sound",)

    def __init__(self, weights: Path, scope: str = "file", **options: str) -> None:
        super().__init__(weights, scope=scope, **options)
        self.spec = FeatureSpec("audio", 1, ("source",) if scope == "file" else ("source", "span"),
                                (TensorSpec("states", "N K D", span_axis=0 if scope == "file" else None),),
                                command="cache_audio_features.py")

    def encode(self, media: Media) -> dict[str, Tensor]:
        assert media.sound is not None
        pieces = np.array_split(media.sound, media.n_frames)
        rows = [[float(np.abs(piece).mean()), float(number)] for number, piece in enumerate(pieces)]
        return {"states": torch.tensor(rows)[:, None, :]}


def _pooled(frames: np.ndarray) -> Tensor:
    video = torch.from_numpy(frames).float().mean(-1)[::4]
    return torch.nn.functional.avg_pool2d(video[:, None], 8)[None, :, 0]


def cache(dataset: Dataset, encoders: Iterable[ToyEncoder], *, rank: int = 0, world_size: int = 1) -> list[str]:
    """Encode what is missing or stale, as the cache scripts do; the names of what was encoded."""
    by_name = {encoder.spec.name: encoder for encoder in encoders}
    jobs = [FeatureJob.of(encoder) for encoder in by_name.values()]
    store = CacheStore(dataset)
    store.remember(jobs)
    done = []
    for entry in share(to_do(work_list(dataset, jobs)), rank, world_size):
        media = load_media(entry.item, entry.span, entry.job.needs)
        store.write(entry.item, entry.span, entry.job, by_name[entry.job.spec.name].encode(media))  # type: ignore[attr-defined]
        done.append(entry.name)
    return done
