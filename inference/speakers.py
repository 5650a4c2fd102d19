"""Several speakers: where each of them is in the picture, and one sound of all for the written video."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError
from common.media.image import read_image
from common.media.masks import at_latent_size, box_mask, covers_nothing, mask_of
from common.media.picture import fit
from common.media.sound import Sound
from common.speakers import parse_box, side_by_side
from inference.request import GenerationRequest


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
        masks = [box_mask(parse_box(text), size) for text in request.speaker_boxes]
    elif request.audio2:
        masks = [box_mask(box, size) for box in side_by_side(1 + len(request.audio2))]
    else:
        return None
    assert all(mask.shape == (height, width) for mask in masks)
    return at_latent_size(torch.stack(masks), latent_size)


def _read_mask(path: Path, size: tuple[int, int], picture_mode: str) -> Float[Tensor, "H W"]:
    picture, _ = read_image(path)
    mask = mask_of(fit(picture, size, picture_mode))  # type: ignore[arg-type]
    if covers_nothing(mask):
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
