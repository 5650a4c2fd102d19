"""Several speakers: where each of them is in the picture, and one sound of all for the written video."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from common.errors import ConfigError
from common.media.image import read_image
from common.media.picture import fit
from common.media.sound import Sound
from inference.request import GenerationRequest

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of the video's width and height."""


def speaker_problems(request: GenerationRequest) -> list[str]:
    """What is wrong with the speakers of a request, before any file is opened."""
    sounds = (request.audio is not None) + len(request.audio2)
    problems = [f"--audio2 {path}: no such file" for path in request.audio2 if not path.exists()]
    problems += [f"--speaker_masks {path}: no such file" for path in request.speaker_masks if not path.exists()]
    if request.audio2 and request.audio is None:
        problems.append("--audio2 is the sound of a further speaker. Give the first one's with --audio")
    if request.speaker_boxes and request.speaker_masks:
        problems.append("--speaker_boxes and --speaker_masks both say where the speakers are. Give one of the two")
    for name in ("speaker_boxes", "speaker_masks"):
        places = len(getattr(request, name))
        if places and places != sounds:
            problems.append(f"--{name}: {places} speakers and {sounds} {'sound' if sounds == 1 else 'sounds'}. Give "
                            "each speaker a sound: the first one's with --audio, the others' with --audio2, in the "
                            "same order")
    for text in request.speaker_boxes:
        try:
            parse_box(text)
        except ConfigError as error:
            problems.append(str(error))
    return problems


def parse_box(text: str) -> Box:
    """``left,top,right,bottom`` as shares of the frame, 0 to 1. Raises ConfigError."""
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--speaker_boxes {text}: expected left,top,right,bottom as shares of the video's width and "
                          "height, such as 0,0,0.5,1 for the left half") from error
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ConfigError(f"--speaker_boxes {text}: covers nothing of the video. Left and top are below right and "
                          "bottom, all from 0 to 1")
    return left, top, right, bottom


def speaker_regions(request: GenerationRequest, size: tuple[int, int], latent_size: tuple[int, int], picture_mode: str
                    ) -> Float[Tensor, "S h w"] | None:
    """Share of each speaker in every latent place, 0…1; None for one speaker who is heard everywhere.

    Boxes or mask pictures (white where the speaker is; brought to the video's `size` = (width, height) as the picture
    is), else with several sounds strips of equal width from left to right. Raises ConfigError for a mask that covers
    nothing.
    """
    width, height = size
    if request.speaker_masks:
        masks = [_read_mask(path, size, picture_mode) for path in request.speaker_masks]
    elif request.speaker_boxes:
        masks = [_box_mask(parse_box(text), size) for text in request.speaker_boxes]
    elif request.audio2:
        count = 1 + len(request.audio2)
        masks = [_box_mask((i / count, 0, (i + 1) / count, 1), size) for i in range(count)]
    else:
        return None
    assert all(mask.shape == (height, width) for mask in masks)
    return adaptive_avg_pool2d(torch.stack(masks), latent_size)


def _box_mask(box: Box, size: tuple[int, int]) -> Float[Tensor, "H W"]:
    width, height = size
    left, right = round(box[0] * width), round(box[2] * width)
    top, bottom = round(box[1] * height), round(box[3] * height)
    mask = torch.zeros(height, width)
    mask[top:max(bottom, top + 1), left:max(right, left + 1)] = 1
    return mask


def _read_mask(path: Path, size: tuple[int, int], picture_mode: str) -> Float[Tensor, "H W"]:
    picture, _ = read_image(path)
    mask = torch.tensor(fit(picture, size, picture_mode)).float().mean(dim=-1) / 255  # type: ignore[arg-type]
    if mask.max() < 0.5:
        raise ConfigError(f"--speaker_masks {path}: covers nothing of the video. White is where the speaker is; the "
                          "mask has the picture's shape and is cropped as it is.")
    return mask


def mix(sounds: Sequence[Sound]) -> Sound:
    """All sounds together, from the same beginning, at the first one's rate and channels.

    The sum is brought down where it would be louder than full scale.
    """
    first = sounds[0]
    if len(sounds) == 1:
        return first
    import soxr

    channels = len(first.samples)
    parts = []
    for sound in sounds:
        samples = sound.samples
        if len(samples) != channels:
            samples = np.repeat(samples.mean(axis=0, keepdims=True), channels, axis=0)
        if sound.sample_rate != first.sample_rate:
            samples = soxr.resample(samples.T, sound.sample_rate, first.sample_rate, quality="HQ").T
        parts.append(samples)
    total = np.zeros((channels, max(part.shape[1] for part in parts)), np.float32)
    for part in parts:
        total[:, :part.shape[1]] += part
    return Sound(total / max(float(np.abs(total).max()), 1.0), first.sample_rate)
