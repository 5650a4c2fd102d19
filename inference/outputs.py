"""Files of a generation: video with its sound, PNG frames, latents, and the JSON that reproduces it."""

from dataclasses import dataclass
from datetime import datetime
import json
from pathlib import Path
import secrets
from typing import TYPE_CHECKING

from common.atomic import write_text
from common.errors import NO_SPACE, ConfigError
from inference.request import VIDEO_SUFFIXES, GenerationRequest

if TYPE_CHECKING:
    from inference.decoding import Decoding
    from inference.result import GenerationResult

WRITES = {"video": ("video",), "images": ("images",), "latent": ("latent",), "both": ("video", "latent"),
          "latent_images": ("latent", "images")}
"""`--output_type` → what is written."""


@dataclass(frozen=True)
class Targets:
    """Paths of one result; None for what is not asked."""

    video: Path | None = None
    images: Path | None = None
    """Folder of PNG frames."""
    latent: Path | None = None
    record: Path | None = None
    """The JSON that reproduces the result."""

    @property
    def first(self) -> Path:
        """The path that a user wants to be told."""
        path = self.video or self.images or self.latent
        assert path is not None
        return path


def is_file_path(save_path: Path) -> bool:
    """Whether `--save_path` names a video file; otherwise it is a folder."""
    return save_path.suffix.lower() in VIDEO_SUFFIXES


def check_save_path(request: GenerationRequest, prompts: int = 1) -> None:
    """Refuse a place that cannot take the result, before any work is done. ConfigError says where it could go."""
    path = request.save_path
    if path is None:
        raise ConfigError("--save_path is required: a video file such as talking.mp4, or a folder.")
    if is_file_path(path):
        if path.is_dir():
            raise ConfigError(f"--save_path {path} is a folder with the name of a video file. Choose another name.")
        if prompts > 1:
            raise ConfigError(f"--save_path {path} is one file, but {prompts} videos are to be written. Give a "
                              "folder.")
        if "images" in WRITES[request.output_type]:
            raise ConfigError(f"--save_path {path} is a video file, but --output_type {request.output_type} writes "
                              "many pictures. Give a folder.")
    elif path.is_file():
        raise ConfigError(f"--save_path {path} is a file, and its name does not end in {', '.join(VIDEO_SUFFIXES)}. "
                          "Give a folder or a video file.")
    folder = path.parent if is_file_path(path) else path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(8)}.tmp"
        probe.touch()
        probe.unlink()
    except PermissionError as error:
        raise ConfigError(f"--save_path {path}: no permission to write into {folder}.") from error
    except (NotADirectoryError, FileExistsError) as error:
        raise ConfigError(f"--save_path {path}: {error.filename} is a file, not a folder.") from error
    except OSError as error:
        if error.errno in NO_SPACE:
            raise
        raise ConfigError(f"--save_path {path}: {folder} takes no files ({error.strerror}). Choose another "
                          "place.") from error


def choose_targets(request: GenerationRequest, seed: int, now: datetime) -> Targets:
    """Paths for one result. In a folder: time and seed, as musubi-tuner names them, with a number where taken."""
    assert request.save_path is not None
    if is_file_path(request.save_path):
        return _targets(request, request.save_path.parent, request.save_path.stem, request.save_path.suffix)
    stem = base = f"{now:%Y%m%d-%H%M%S}_{seed}"
    number = 2
    while any(path is not None and path.exists() for path in vars(_targets(request, request.save_path, stem)).values()):
        stem, number = f"{base}_{number}", number + 1
    return _targets(request, request.save_path, stem)


def _targets(request: GenerationRequest, folder: Path, stem: str, suffix: str = ".mp4") -> Targets:
    wanted = WRITES[request.output_type]
    return Targets(
        video=folder / f"{stem}{suffix}" if "video" in wanted else None,
        images=folder / stem if "images" in wanted else None,
        latent=folder / f"{stem}_latent.safetensors" if "latent" in wanted else None,
        record=None if request.no_metadata else folder / f"{stem}.json")


def write_result(result: "GenerationResult", now: datetime, decoding: "Decoding | None" = None) -> Path:
    """Write everything that the result's settings ask for; the path to tell the user. Each file is whole or absent.

    `decoding`: the result's frames where they are still to come; they are written as they do.
    """
    from common.media.video import write_png_frames, write_video

    settings = result.settings
    assert settings.seed is not None
    targets = choose_targets(settings, settings.seed, now)
    if targets.latent is not None:
        write_latent(targets.latent, result)
    frames = decoding.frames() if decoding is not None and not decoding.is_done else result.each_frame()
    if targets.images is not None:
        write_png_frames(targets.images, frames)
    if targets.video is not None:
        write_video(targets.video, frames, fps=result.fps, sound=result.sound,
                    lead_s=result.sound_lead_s)
    if targets.record is not None:
        write_text(targets.record, json.dumps(result.record, indent=2, ensure_ascii=False) + "\n")
    return targets.first


def write_latent(path: Path, result: "GenerationResult") -> None:
    """Write the latents under musubi-tuner's key and metadata, with what `--latent_path` needs to finish them."""
    from common.tensorfile import save_tensors

    settings = result.settings
    assert result.video is not None and result.latents is not None
    frames, height, width = result.video.shape[1:]
    metadata = {"omnituner.fps": str(result.fps), "omnituner.frames": str(frames)}
    if not settings.no_metadata:
        told = {"seeds": settings.seed, "prompt": settings.prompt, "height": height, "width": width,
                "video_length": frames, "infer_steps": settings.infer_steps, "guidance_scale": settings.guidance_scale,
                "negative_prompt": settings.negative_prompt}
        metadata |= {key: str(value) for key, value in told.items()}
        metadata["omnituner.record"] = json.dumps(result.record, ensure_ascii=False)
    save_tensors(path, {"latent": result.latents}, metadata)
