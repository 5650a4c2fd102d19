"""How a picture meets a size: one function with named modes, used by caches and generation alike."""

from collections.abc import Callable
from math import ceil, isqrt
from typing import Literal, get_args

from einops import rearrange
from jaxtyping import Float, Float32, UInt8
import numpy as np
import torch
from torch import Tensor

from common.errors import ConfigError

PictureMode = Literal["cover", "wan_i2v", "omniavatar", "ti2v"]
"""Names of the ways to bring a picture to a size.

``cover``       scaled to cover (sides rounded half up), LANCZOS up, area average down, centre crop: musubi-tuner.
``wan_i2v``     stretched, bicubic without antialias: Wan 2.1 image-to-video; choose the size with `wan_i2v_size`.
``omniavatar``  scaled to cover (sides cut to int), bilinear with antialias, centre crop: OmniAvatar's inference.
``ti2v``        scaled to cover (sides rounded half to even), LANCZOS, centre crop: Wan 2.2 TI2V.
"""

PICTURE_MODES: tuple[str, ...] = get_args(PictureMode)


def fit(frames: UInt8[np.ndarray, "*n h w 3"], size: tuple[int, int], mode: PictureMode = "cover") -> np.ndarray:
    """Bring a picture ``[H W 3]`` or frames ``[N H W 3]`` (uint8 RGB) to `size` = (width, height); same rank, uint8.

    The modes that compute in float (``wan_i2v``, ``omniavatar``) are rounded here; `fit_exact` keeps their fractions.
    Raises ConfigError for an unknown mode.
    """
    _check(frames, mode)
    if frames.ndim == 3:
        return _fit_one(frames, size, mode)
    width, height = size
    fitted = np.empty((len(frames), height, width, 3), np.uint8)
    for index, frame in enumerate(frames):
        fitted[index] = _fit_one(frame, size, mode)
    return fitted


def fit_exact(frames: UInt8[np.ndarray, "*n h w 3"], size: tuple[int, int],
              mode: PictureMode = "cover") -> Float[Tensor, "3 n height width"]:
    """Like `fit`, as float32 in -1…1 and without rounding to 8 bits, which is what the original pipelines compute.

    ``wan_i2v`` may leave -1…1 by a little, as bicubic filters do and the original lets pass. One picture gives n = 1.
    """
    _check(frames, mode)
    pictures = frames if frames.ndim == 4 else frames[None]
    if mode in _EXACT:
        return torch.stack([_EXACT[mode](picture, size) for picture in pictures], dim=1)
    return to_minus_one_one(fit(pictures, size, mode))


def to_minus_one_one(frames: UInt8[np.ndarray, "*n h w 3"] | Float32[np.ndarray, "*n h w 3"]
                     ) -> Float[Tensor, "3 n h w"]:
    """uint8 0…255 as float32 -1…1, channels first: ``[N H W 3]`` → ``3 N H W``; a single picture gives N = 1.

    float32 frames are in -1…1 already (from `exact_frames`) and keep their values.
    """
    pictures = frames if frames.ndim == 4 else frames[None]
    channels_first = torch.from_numpy(np.ascontiguousarray(pictures.transpose(3, 0, 1, 2)))
    return channels_first if channels_first.dtype == torch.float32 else from_levels(channels_first)


def from_levels(levels: UInt8[Tensor, "*any"]) -> Float32[Tensor, "*any"]:
    """0…255 as float32 -1…1, on the device where the levels lie."""
    return levels.to(torch.float32).div_(127.5).sub_(1.0)


def exact_frames(frames: UInt8[np.ndarray, "*n h w 3"], size: tuple[int, int],
                 mode: PictureMode = "cover") -> Float32[np.ndarray, "n height width 3"]:
    """The numbers of `fit_exact` in the layout of frames, so that encoders of cached features see no rounding."""
    return rearrange(fit_exact(frames, size, mode), "c n h w -> n h w c").contiguous().numpy()


def wan_i2v_size(height: int, width: int, max_area: int) -> tuple[int, int]:
    """(width, height) of a Wan 2.1 image-to-video clip: the picture's aspect ratio, multiples of 16, about `max_area`.

    Source: Wan 2.1 `image2video.py`: latent height = round(sqrt(max_area·H/W) // 8 // 2 · 2), latent width likewise;
    here in whole numbers, since its floating point turns a picture of exactly 832x480 into 832x464.
    """
    return _sixteens(max_area * width // height), _sixteens(max_area * height // width)


def _sixteens(square: int) -> int:
    return max(isqrt(square) // 16 * 16, 16)


def turn(picture: np.ndarray, orientation: int) -> np.ndarray:
    """A stored picture ``[H W …]`` as it is to be shown, by EXIF orientation 1…8 (1 as stored, 6 turned clockwise)."""
    if orientation in (5, 6, 7, 8):
        picture = picture.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def _check(frames: np.ndarray, mode: str) -> None:
    assert frames.dtype == np.uint8 and frames.ndim in (3, 4) and frames.shape[-1] == 3, (frames.dtype, frames.shape)
    if mode not in PICTURE_MODES:
        raise ConfigError(f"unknown picture mode '{mode}'. Use one of {', '.join(PICTURE_MODES)}.")


def _fit_one(picture: np.ndarray, size: tuple[int, int], mode: str) -> np.ndarray:
    if (picture.shape[1], picture.shape[0]) == size:
        return picture
    if mode == "cover":
        return _cover(picture, size)
    if mode == "ti2v":
        return _ti2v(picture, size)
    exact = _EXACT[mode](picture, size)
    return rearrange(exact, "c h w -> h w c").add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def _cover(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import cv2

    height, width = picture.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    scaled = (int(width * scale + 0.5), int(height * scale + 0.5))
    # PIL's LANCZOS, not OpenCV's LANCZOS4: musubi-tuner enlarges with PIL, and the two differ by several levels.
    picture = _lanczos(picture, scaled) if scale > 1 else cv2.resize(picture, scaled, interpolation=cv2.INTER_AREA)
    return _crop(picture, size)


def _ti2v(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = picture.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    return _crop(_lanczos(picture, (round(width * scale), round(height * scale))), size)


def _lanczos(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _crop(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    left, top = (picture.shape[1] - size[0]) // 2, (picture.shape[0] - size[1]) // 2
    return np.ascontiguousarray(picture[top:top + size[1], left:left + size[0]])


def _unit(picture: np.ndarray) -> Tensor:
    return rearrange(torch.tensor(picture), "h w c -> 1 c h w").to(torch.float32) / 255


def _wan_i2v(picture: np.ndarray, size: tuple[int, int]) -> Tensor:
    signed = (_unit(picture) - 0.5) / 0.5
    return torch.nn.functional.interpolate(signed, size=size[::-1], mode="bicubic", align_corners=False)[0]


def _omniavatar(picture: np.ndarray, size: tuple[int, int]) -> Tensor:
    height, width = picture.shape[:2]
    scale = max(size[1] / height, size[0] / width)
    # The original's int() can fall one pixel short and leave a black line; we keep the size covered.
    scaled = (max(int(height * scale), size[1]), max(int(width * scale), size[0]))
    unit = torch.nn.functional.interpolate(_unit(picture), size=scaled, mode="bilinear", antialias=True)
    # It crops by negative padding split with //, so the odd pixel goes at the top and left.
    top, left = ceil((scaled[0] - size[1]) / 2), ceil((scaled[1] - size[0]) / 2)
    return unit[0, :, top:top + size[1], left:left + size[0]] * 2 - 1


_EXACT: dict[str, Callable[[np.ndarray, tuple[int, int]], Tensor]] = {"wan_i2v": _wan_i2v, "omniavatar": _omniavatar}
