"""Decoding chosen pictures of a video as RGB, from the nearest place where decoding can start."""

from collections.abc import Generator, Iterator, Sequence
import os
from typing import Any

import numpy as np

from common.errors import MediaError
from common.logs import get_logger
from common.media.colour import rgb_of
from common.media.container import need_pictures, open_media
from common.media.picture import turn
from common.media.scan import Scan

log = get_logger(__name__)

MISSED_FORGIVEN = 2
"""Pictures that may fail to come out of the decoder (hidden ones, or at a cut) before the file counts as damaged."""

_threads: int | None = None


def use_threads(count: int | None) -> None:
    """Decode with so many threads in this process from now on; None: as many as there are cores. Pictures are equal."""
    global _threads
    _threads = count


def decode_pictures(path: str | os.PathLike[str], scan: Scan, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """RGB pictures ``[H W 3]`` uint8 as shown, one for each index in `wanted` (strictly ascending, into the time line).

    Starts at the last key frame before the first wanted picture and gives the same pictures as reading from the
    beginning. Only wanted pictures are converted, and one at a time is held.
    Raises MediaError where the file is damaged; a damaged picture is an error, never a guess.
    """
    stamps = [int(scan.timeline.pts[index]) for index in wanted]
    if not stamps:
        return
    position, missed = 0, 0
    previous = None
    for pts, frame in _frames_from(path, scan, stamps[0]):
        while position < len(stamps) and pts > stamps[position]:
            missed += 1
            yield _rgb(_need(path, previous, scan, stamps[position]), scan)
            position += 1
        if position < len(stamps) and pts == stamps[position]:
            yield _rgb(frame, scan)
            position += 1
        if position == len(stamps):
            break
        previous = frame
    for stamp in stamps[position:]:
        missed += 1
        yield _rgb(_need(path, previous, scan, stamp), scan)
    if missed > max(MISSED_FORGIVEN, len(stamps) // 10):
        raise MediaError(f"{path}: damaged: {missed} of {len(stamps)} pictures could not be decoded. "
                         "Re-encode the file.")
    if missed:
        log.warning("%s: %d of %d pictures could not be decoded; each shows the one before", path, missed, len(stamps))


def _need(path: str | os.PathLike[str], frame: Any, scan: Scan, stamp: int) -> Any:
    if frame is None:
        second = (stamp - int(scan.timeline.pts[0])) * float(scan.timeline.time_base)
        raise MediaError(f"{path}: damaged: the picture at {second:.2f} s cannot be decoded. Re-encode the file.")
    return frame


def _frames_from(path: str | os.PathLike[str], scan: Scan, first: int) -> Iterator[tuple[int, Any]]:
    """(pts, frame) in order, from a picture at or before `first`; falls back to the file's beginning."""
    keys = [key for key in scan.timeline.keys if key[0] <= first] if scan.timeline.is_seekable else []
    if keys and keys[-1] != scan.timeline.keys[0]:
        frames = _decoded(path, scan, first, keys[-1][1])
        try:
            start = next(frames, None)
        except MediaError:
            start = None
        # A file may promise a key frame and need earlier ones all the same (open groups, gradual refresh).
        if start is not None and start[0] <= first:
            yield start
            yield from frames
            return
        frames.close()
    yield from _decoded(path, scan, first, None)


def _decoded(path: str | os.PathLike[str], scan: Scan, first: int, seek_dts: int | None
             ) -> Generator[tuple[int, Any]]:
    """(pts, frame) in order, after a seek or from the beginning; pictures before `first` may be damaged, later not."""
    with open_media(path) as container:
        stream = need_pictures(path, container)
        stream.thread_type = "AUTO"
        if _threads is not None:
            stream.thread_count = _threads
        # Without this, decoders paint over damage and say nothing. HEVC says little even so, unless it carries hashes.
        stream.codec_context.options = {"err_detect": "crccheck+explode"}
        if seek_dts is not None:
            container.seek(seek_dts, stream=stream, backward=True)
        count = 0
        is_started = not scan.timeline.keys
        for packet in container.demux(stream):
            # What stands before the first key frame (a file cut out of a longer one) cannot be decoded.
            is_started = is_started or packet.is_keyframe
            if packet.is_corrupt or not is_started:
                continue
            for frame in packet.decode():
                pts = count if scan.timeline.untimed else frame.pts
                count += 1
                if frame.is_corrupt and pts >= first:
                    second = (pts - int(scan.timeline.pts[0])) * float(scan.timeline.time_base)
                    raise MediaError(f"{path}: damaged: the picture at {second:.2f} s is broken. "
                                     "Copy, download or re-encode the file, or take it out.")
                yield pts, frame


def _rgb(frame: Any, scan: Scan) -> np.ndarray:
    """One decoded frame as shown: with square pixels, and turned."""
    rgb = rgb_of(frame)
    if scan.first.pixel_aspect != 1:
        import cv2

        rgb = cv2.resize(rgb, scan.first.square_size, interpolation=cv2.INTER_CUBIC)
    return turn(rgb, scan.first.orientation)
