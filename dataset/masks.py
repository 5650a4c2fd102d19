"""Masks of a clip: white where the face, the mouth or a speaker is, at the bucket's size like its frames."""

from pathlib import Path

import numpy as np

from common.errors import MediaError
from common.media.image import IMAGE_SUFFIXES, read_image
from common.media.masks import box_mask, covers_nothing, mask_of
from common.media.video import count_frames, probe_video
from dataset.items import Item
from dataset.pictures import still, there, video_frames
from dataset.rows import FileRef
from dataset.spans import Span

SHAPE_TOLERANCE = 0.02
"""How far width / height of a mask may be off: what rounding to whole pixels does to a mask that was made small."""


def region_masks(item: Item, span: Span) -> dict[str, np.ndarray]:
    """The masks of the regions that the item has, ``[N H W 3]`` or ``[1 H W 3]`` each. MediaError names the file."""
    return {region: _read(file, item, span) for region, file in item.region_masks.items()}


def speaker_masks(item: Item, span: Span) -> tuple[np.ndarray, ...]:
    """Where each speaker is: masks that were given, or boxes as masks that hold for the clip, ``[1 H W 3]``."""
    if item.speaker_masks:
        return tuple(_read(file, item, span) for file in item.speaker_masks)
    boxes = [(255 * box_mask(box, span.size)).byte().numpy() for box in item.boxes]
    return tuple(np.repeat(box[None, :, :, None], 3, axis=3) for box in boxes)


def _read(file: FileRef, item: Item, span: Span) -> np.ndarray:
    """A picture holds for the whole clip; of a video or a folder, the clip's frames. One that is too short is refused:
    where a face has gone to is not known."""
    path = there(file)
    _refuse_other_shape(path, item)
    if _is_picture(path):
        pictures = still(path, span)[None]
    else:
        available = count_frames(path, item.clock.fps, item.clock.source_fps)
        if available < span.end:
            raise MediaError(f"{path}: the mask has {available} frames at {item.fps:g} fps, and the clip is frames "
                             f"{span.start} to {span.end - 1} of {item.name}. Make it as long as the video, or give a "
                             "single picture, which holds for all frames.")
        pictures = video_frames(path, item, span.start, span.frames, span)
    if all(covers_nothing(mask_of(picture)) for picture in pictures):
        raise MediaError(f"{path}: a mask that covers nothing of frames {span.start} to {span.end - 1} of {item.name}. "
                         "White is inside; the mask has the video's shape and is cropped as it is.")
    return pictures


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _refuse_other_shape(path: Path, item: Item) -> None:
    """A mask of another shape would be cropped elsewhere, and lie beside what it shall cover."""
    if item.shown_size is None:
        return
    if _is_picture(path):
        height, width = read_image(path)[0].shape[:2]
    else:
        info = probe_video(path)
        width, height = info.width, info.height
    own_width, own_height = item.shown_size
    if abs(width * own_height / (height * own_width) - 1) > SHAPE_TOLERANCE:
        raise MediaError(f"{path}: the mask is {width}x{height}, and {item.name} is {own_width}x{own_height}. Give it "
                         "the shape of what it covers; a smaller size of the same shape will do.")
