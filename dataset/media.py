"""Decodes the media of one clip for the encoders: pictures at the bucket's size, and sound on the pictures' clock."""

from collections.abc import Collection
from functools import lru_cache
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import MediaError
from common.media.image import IMAGE_SUFFIXES, read_image
from common.media.item import Media
from common.media.picture import fit
from common.media.sound import mono16k, read_sound
from common.media.video import count_frames, read_frames
from common.timebase import as_fraction
from dataset.items import PICTURE_MODE, Item
from dataset.rows import FileRef
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
    assert span is not None or not needs & {"frames", "control", "reference"}, needs
    return Media(
        n_frames=span.frames if span else item.n_frames, fps=item.fps,
        frames=_frames(item, span) if span and "frames" in needs else None,
        control=_control(item, span) if span and "control" in needs else None,
        reference=_reference(item, span) if span and "reference" in needs else None,
        caption=item.caption if "caption" in needs else None,
        sound=_sound(item, span) if "sound" in needs else None, size=span.size if span else None)


def _frames(item: Item, span: Span) -> np.ndarray:
    path = _there(item.media)
    if item.kind == "image":
        return _still(path, span)[None]
    return _video_frames(path, item, span.start, span.frames, span)


def _still(path: Path, span: Span) -> np.ndarray:
    # A copy, because what PIL hands out cannot be written to, and torch warns about that.
    return np.array(fit(read_image(path)[0], span.size, PICTURE_MODE))


def _video_frames(path: Path, item: Item, start: int, count: int, span: Span) -> np.ndarray:
    return read_frames(path, fps=item.clock.fps, start_frame=start, count=count, size=span.size,
                       picture_mode=PICTURE_MODE, source_fps=item.clock.source_fps)


def _control(item: Item, span: Span) -> np.ndarray | None:
    """The same frames of the control video; where it is shorter its last frame stands still, as in musubi-tuner."""
    file = item.side("control")
    if file is None:
        return None
    path = _there(file)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return np.repeat(_still(path, span)[None], span.frames, axis=0)
    available = count_frames(path, item.clock.fps, item.clock.source_fps)
    start = min(span.start, available - 1)
    frames = _video_frames(path, item, start, min(span.frames, available - start), span)
    return np.concatenate([frames, np.repeat(frames[-1:], span.frames - len(frames), axis=0)])


def _reference(item: Item, span: Span) -> np.ndarray:
    file = item.side("reference")
    if file is not None:
        return _still(_there(file), span)
    if item.kind == "image":
        return _frames(item, span)[0]
    frame = item.reference_frame(span)
    assert frame is not None
    return _video_frames(_there(item.media), item, frame, 1, span)[0]


def _sound(item: Item, span: Span | None) -> np.ndarray | None:
    if item.sound is None:
        return None
    path = _there(item.sound.file)
    start, frames = (span.start, span.frames) if span else (0, item.n_frames)
    rate = as_fraction(item.fps)
    return mono16k(_decoded(str(path), os.stat(path).st_mtime_ns), from_s=item.sound.zero_s + float(start / rate),
                   duration_s=float(frames / rate))


@lru_cache(maxsize=2)
def _decoded(path: str, mtime_ns: int) -> "DecodedSound":
    """The last sounds read, because the clips of a source come one after the other."""
    return read_sound(path)


def _there(file: FileRef) -> Path:
    if not file.path.exists():
        raise MediaError(f"{file.path}: the file is not there, so nothing can be made from it. Bring it back.")
    return file.path
