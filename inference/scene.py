"""The pictures and the sound that a request names, read and checked before any model is loaded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import MediaError, raise_all
from common.logs import get_logger
from common.media.image import read_image
from common.media.sound import Sound, read_sound
from inference.request import GenerationRequest
from inference.speakers import mix

log = get_logger(__name__)


@dataclass(frozen=True)
class Scene:
    """What is given to a generation besides text. Pictures are uint8 RGB `[H W 3]` at their own size."""

    first: np.ndarray | None = None
    last: np.ndarray | None = None
    sound: Sound | None = None
    """What is heard in the video: the one sound, or those of all speakers together."""
    voices: tuple[Sound, ...] = ()
    """What the model hears of each speaker."""

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width of the first picture."""
        return None if self.first is None else (self.first.shape[0], self.first.shape[1])


def read_scene(request: GenerationRequest) -> Scene:
    """Read the media of a request; what had to be done to a picture is told in one line.

    Raises one MediaError that lists every file that cannot be used.
    """
    problems: list[str] = []
    pictures = {}
    for name in ("image_path", "end_image_path"):
        path = getattr(request, name)
        if path is None:
            continue
        try:
            pictures[name], notes = read_image(path)
        except MediaError as error:
            problems.append(f"--{name} {error}")
            continue
        if notes:
            log.info("%s: %s", path, ", ".join(notes))
    sounds, voices = [], []
    for name, path in (("audio", request.audio), *(("audio2", path) for path in request.audio2)):
        if path is None:
            continue
        try:
            sounds.append(read_sound(path))
            voices.append(_heard_channel(sounds[-1], request.audio_channel, path))
        except MediaError as error:
            problems.append(f"--{name} {error}")
    raise_all(problems, MediaError, "media")
    return Scene(pictures.get("image_path"), pictures.get("end_image_path"), mix(sounds) if sounds else None,
                 tuple(voices))


def _heard_channel(sound: Sound, channel: int | None, path: Path) -> Sound:
    """The sound, or the one channel of it that is to be heard."""
    if channel is None:
        return sound
    if channel > len(sound.samples):
        raise MediaError(f"{path}: --audio_channel {channel}: the sound has {len(sound.samples)} "
                         f"channel{'s' if len(sound.samples) > 1 else ''}. Give a number up to that.")
    return Sound(sound.samples[channel - 1:channel], sound.sample_rate, sound.start_s)
