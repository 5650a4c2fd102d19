"""Between the colours of a video file (YCbCr, by its own tags) and 8-bit RGB."""

from typing import Any

import numpy as np

BT709, BT601 = 1, 5
LIMITED_RANGE, FULL_RANGE = 1, 2
# AVColorSpace's number → that of the matrix as swscale counts; the numbers left out mean "not said".
_MATRICES = {1: BT709, 4: 4, 5: BT601, 6: BT601, 7: 7, 9: 9, 10: 9}
_HIGH_DEFINITION = 720
# swscale's short cuts darken a picture by 1.3 levels on average (measured there and back); these flags do without them.
# PyAV's Interpolation names them; plain numbers spare the import. BILINEAR and BICUBIC are 2 and 4.
_ACCURATE_ROUNDING, _FULL_CHROMA = 0x40000, 0x2000 | 0x4000
_TO_RGB = 2 | _ACCURATE_ROUNDING | _FULL_CHROMA
_FROM_RGB = 4 | _ACCURATE_ROUNDING


def rgb_of(frame: Any) -> np.ndarray:
    """A decoded video frame as uint8 RGB ``[H W 3]``, as stored (not turned); transparency is flattened on black.

    A file that does not name its matrix is taken as bt709 from 720 lines on, as bt601 below, which is what players do.
    """
    unsaid = BT709 if min(frame.width, frame.height) >= _HIGH_DEFINITION else BT601
    matrix = _MATRICES.get(int(frame.colorspace), unsaid)
    is_full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
    has_alpha = any(component.is_alpha for component in frame.format.components)
    rgb = frame.to_ndarray(format="rgba" if has_alpha else "rgb24", src_colorspace=matrix, dst_colorspace=matrix,
                           src_color_range=FULL_RANGE if is_full else LIMITED_RANGE, dst_color_range=FULL_RANGE,
                           interpolation=_TO_RGB)
    if has_alpha:
        rgb = ((rgb[:, :, :3].astype(np.uint16) * rgb[:, :, 3:] + 127) // 255).astype(np.uint8)
    return rgb


def frame_of(picture: np.ndarray) -> Any:
    """uint8 RGB ``[H W 3]`` (even sides) as a yuv420p frame, bt709, limited range."""
    from av import VideoFrame

    return VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24").reformat(
        format="yuv420p", src_colorspace=BT709, dst_colorspace=BT709, src_color_range=FULL_RANGE,
        dst_color_range=LIMITED_RANGE, interpolation=_FROM_RGB)
