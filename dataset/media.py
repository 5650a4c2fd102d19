"""Decodes the media of one clip for the encoders: pictures at the bucket's size, and sound on the pictures' clock."""

from collections.abc import Collection
from functools import lru_cache
import os
from typing import TYPE_CHECKING

import numpy as np

from common.media.image import IMAGE_SUFFIXES
from common.media.item import Media
from common.media.sound import mono16k, read_sound
from common.media.video import count_frames
from common.speakers import SPEAKER_REGIONS, speaker_of
from common.timebase import as_fraction
from dataset.items import Item
from dataset.masks import region_masks, speaker_masks
from dataset.pictures import still, there, video_frames
from dataset.spans import Span

if TYPE_CHECKING:
    from common.media.sound import Sound as DecodedSound


def load_media(item: Item, span: Span | None, needs: Collection[str]) -> Media:
    """Read what `needs` names (fields of `Media`) for a clip, or for the whole source when `span` is None.

    Frame k of a clip is what is on the screen (start + k)/fps seconds after the first picture; its sound is that of the
    same moment. Sound that the file lacks is silence (how much may lack is decided when the dataset is opened). Raises
    MediaError naming the file.
    """
    needs = set(needs)
    assert span is not None or not needs & {"frames", "control", "reference", "region_masks", SPEAKER_REGIONS}, needs
    further = [speaker for need in needs if (speaker := speaker_of(need) or 1) > 1]
    return Media(
        n_frames=span.frames if span else item.n_frames, fps=item.fps,
        frames=_frames(item, span) if span and "frames" in needs else None,
        control=_control(item, span) if span and "control" in needs else None,
        reference=_reference(item, span) if span and "reference" in needs else None,
        caption=item.caption if "caption" in needs else None,
        sound=_sound(item, span) if "sound" in needs else None,
        voices={speaker: sound for speaker in further if (sound := _sound(item, span, speaker)) is not None},
        region_masks=region_masks(item, span) if span and "region_masks" in needs else None,
        speaker_regions=speaker_masks(item, span) if span and SPEAKER_REGIONS in needs else None,
        size=span.size if span else None)


def _frames(item: Item, span: Span) -> np.ndarray:
    path = there(item.media)
    if item.kind == "image":
        return still(path, span)[None]
    return video_frames(path, item, span.start, span.frames, span)


def _control(item: Item, span: Span) -> np.ndarray | None:
    """The same frames of the control video; where it is shorter its last frame stands still, as in musubi-tuner."""
    file = item.side("control")
    if file is None:
        return None
    path = there(file)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return np.repeat(still(path, span)[None], span.frames, axis=0)
    available = count_frames(path, item.clock.fps, item.clock.source_fps)
    start = min(span.start, available - 1)
    frames = video_frames(path, item, start, min(span.frames, available - start), span)
    return np.concatenate([frames, np.repeat(frames[-1:], span.frames - len(frames), axis=0)])


def _reference(item: Item, span: Span) -> np.ndarray:
    file = item.side("reference")
    if file is not None:
        return still(there(file), span)
    if item.kind == "image":
        return _frames(item, span)[0]
    frame = item.reference_frame(span)
    assert frame is not None
    return video_frames(there(item.media), item, frame, 1, span)[0]


def _sound(item: Item, span: Span | None, speaker: int = 1) -> np.ndarray | None:
    if speaker > len(item.sounds):
        return None
    sound = item.sounds[speaker - 1]
    path = there(sound.file)
    start, frames = (span.start, span.frames) if span else (0, item.n_frames)
    rate = as_fraction(item.fps)
    return mono16k(_decoded(str(path), os.stat(path).st_mtime_ns), from_s=sound.zero_s + float(start / rate),
                   duration_s=float(frames / rate))


@lru_cache(maxsize=2)
def _decoded(path: str, mtime_ns: int) -> "DecodedSound":
    """The last sounds read, because the clips of a source come one after the other."""
    return read_sound(path)
