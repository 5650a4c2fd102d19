"""Latent files of earlier runs: read them, decode them, write the video (`--latent_path`)."""

from dataclasses import dataclass, replace
from datetime import datetime
import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from common.config import from_values
from common.errors import ConfigError, MediaError
from common.logs import get_logger
from common.media.sound import Sound, read_sound
from common.tensorfile import load_tensors
from common.timebase import video_frame_count
from inference.decoding import Decoding
from inference.models import load_fast_vae
from inference.outputs import write_result
from inference.request import GenerationRequest
from inference.result import GenerationResult

log = get_logger(__name__)

KEYS = ("latent", "latents")
DEFAULT_FPS = 16.0


@dataclass(frozen=True)
class LatentFile:
    """Latents as they were saved, and what the file tells about them."""

    path: Path
    latents: Float[Tensor, "16 T h w"]
    fps: float | None
    frames: int | None
    """Video frames to write; None means all."""
    record: dict[str, Any]


def read_latents(path: Path) -> LatentFile:
    """Latents of a file that this program or musubi-tuner wrote; MediaError for any other."""
    if not path.is_file():
        raise MediaError(f"--latent_path {path}: no such file.")
    tensors, metadata = load_tensors(path)
    latents = next((tensors[key] for key in KEYS if key in tensors), None)
    if latents is not None and latents.ndim == 5 and len(latents) == 1:
        latents = latents[0]
    if latents is None or latents.ndim != 4 or latents.shape[0] != 16:
        found = ", ".join(f"{key} {list(tensor.shape)}" for key, tensor in list(tensors.items())[:3])
        raise MediaError(f"--latent_path {path}: expected a tensor 'latent' of 16 channels, frames, height and width; "
                         f"found {found or 'nothing'}.")
    fps, frames = metadata.get("omnituner.fps"), metadata.get("omnituner.frames")
    return LatentFile(path, latents.float(), float(fps) if fps else None, int(frames) if frames else None,
                      json.loads(metadata.get("omnituner.record", "{}")))


def decode_latents(request: GenerationRequest) -> list[GenerationResult]:
    """Decode every `--latent_path` and write the results; nothing but the VAE is loaded.

    The sound is `--audio`, else the one that the file's record names, if it is still there.
    """
    if request.vae is None:
        raise ConfigError("--vae is required to decode latents.")
    if not request.vae.exists():
        raise ConfigError(f"--vae {request.vae}: no such file or folder.")
    files = [read_latents(path) for path in request.latent_path]
    sounds = [_sound(request, file) for file in files]
    vae = load_fast_vae(request.vae, request)
    results = []
    for file, sound in zip(files, sounds, strict=True):
        settings = _settings(request, file)
        total = video_frame_count(file.latents.shape[1])
        shown = min(total, total if file.frames is None else file.frames) - request.trim_tail_frames
        decoding = Decoding(vae, file.latents, max(shown, 0))
        result = GenerationResult(video=decoding.video, latents=file.latents, sound=sound,
                                  fps=settings.fps or DEFAULT_FPS, settings=settings,
                                  record={**file.record, "decoded_from": str(file.path.absolute())})
        if request.save_path is not None:
            result = replace(result, path=write_result(result, datetime.now(), decoding))
            log.info("wrote %s", result.path)
        decoding.finish()
        results.append(result)
    return results


def _settings(request: GenerationRequest, file: LatentFile) -> GenerationRequest:
    """The settings that made the latents, with those of this run on top; what to write is this run's alone."""
    made_by = {name: value for name, value in file.record.get("settings", {}).items()
               if name in GenerationRequest.model_fields and name != "output_type"}
    own = {name: getattr(request, name) for name in request.model_fields_set}
    settings = from_values(GenerationRequest, {**made_by, **own, "latent_path": []})
    fps = request.fps or file.fps or DEFAULT_FPS
    return settings.model_copy(update={"fps": fps, "seed": 0 if settings.seed is None else settings.seed})


def _sound(request: GenerationRequest, file: LatentFile) -> Sound | None:
    if request.audio is not None:
        return read_sound(request.audio)
    named = file.record.get("settings", {}).get("audio")
    if named is None:
        return None
    if not Path(named).is_file():
        log.warning("%s: its sound %s is not there any more; the video is written without. Give it with --audio.",
                    file.path.name, named)
        return None
    return read_sound(named)

