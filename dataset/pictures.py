"""Pictures of a source and its side files at the bucket's size; all of them meet it in one way, so that they fit."""

from pathlib import Path

import numpy as np

from common.errors import MediaError
from common.media.image import read_image
from common.media.picture import fit
from common.media.video import read_frames
from dataset.items import PICTURE_MODE, Item
from dataset.rows import FileRef
from dataset.spans import Span


def still(path: Path, span: Span) -> np.ndarray:
    """A picture as uint8 RGB ``[H W 3]``."""
    # A copy, because what PIL hands out cannot be written to, and torch warns about that.
    return np.array(fit(read_image(path)[0], span.size, PICTURE_MODE))


def video_frames(path: Path, item: Item, start: int, count: int, span: Span) -> np.ndarray:
    """Frames of a video or a folder of pictures on the item's clock, as uint8 RGB ``[N H W 3]``."""
    return read_frames(path, fps=item.clock.fps, start_frame=start, count=count, size=span.size,
                       picture_mode=PICTURE_MODE, source_fps=item.clock.source_fps)


def there(file: FileRef) -> Path:
    """The file's path; MediaError when it is not there."""
    if not file.path.exists():
        raise MediaError(f"{file.path}: the file is not there, so nothing can be made from it. Bring it back.")
    return file.path
