"""Strips: rows of frames under each other, each with a label, for before and after."""

from collections.abc import Sequence
import os

from jaxtyping import Float, UInt8
import numpy as np

LABEL_HEIGHT = 20
BAR_HEIGHT = 36
GAP = 2


def write_strip(path: str | os.PathLike[str], rows: Sequence[tuple[str, UInt8[np.ndarray, "N H W 3"]]], *,
                levels: Float[np.ndarray, " N"] | None = None, columns: int = 8, height: int = 128) -> None:
    """Write one picture with a row for each (label, frames): `columns` frames spread evenly over the clip.

    The same column shows the same frame number in every row, so rows are cut to the shortest clip; frames are
    brought to `height` pixels. `levels` in 0…1, one a frame, stand above the columns as bars (how loud the sound is).
    """
    from PIL import Image, ImageDraw

    from common.atomic import atomic_path

    if not rows or any(len(frames) == 0 for _, frames in rows):
        raise ValueError("a strip needs at least one row, and frames in every row")
    shortest = min(len(frames) for _, frames in rows)
    picked = np.linspace(0, shortest - 1, min(columns, shortest)).round().astype(int)
    parts = [[_scaled(frames[k], height) for k in picked] for _, frames in rows]
    width = max(sum(part.shape[1] + GAP for part in row) for row in parts)
    above = 0 if levels is None else LABEL_HEIGHT + BAR_HEIGHT
    strip = Image.new("RGB", (width, above + len(rows) * (height + LABEL_HEIGHT + GAP)), "white")
    draw = ImageDraw.Draw(strip)
    if levels is not None:
        draw.text((4, 3), "sound", fill="black")
        left = 0
        for k, part in zip(picked, parts[0], strict=True):
            tall, wide = round(float(np.clip(levels[k], 0, 1)) * BAR_HEIGHT), part.shape[1]
            draw.rectangle((left + wide // 4, above - tall - 1, left + wide - wide // 4, above - 1), fill="dimgray")
            left += wide + GAP
    for i, ((label, _), row) in enumerate(zip(rows, parts, strict=True)):
        top, left = above + i * (height + LABEL_HEIGHT + GAP), 0
        draw.text((4, top + 3), label, fill="black")
        for part in row:
            strip.paste(Image.fromarray(part), (left, top + LABEL_HEIGHT))
            left += part.shape[1] + GAP
    with atomic_path(path) as temporary:
        strip.save(temporary)


def _scaled(frame: np.ndarray, height: int) -> np.ndarray:
    import cv2

    if frame.shape[0] == height:
        return np.ascontiguousarray(frame)
    width = max(1, round(frame.shape[1] * height / frame.shape[0]))
    shrinks = frame.shape[0] > height
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
