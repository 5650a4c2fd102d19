"""Mouth opening measured from pixels: red lips around a dark mouth, on a skin of any colour.

Colour and place, no network, and no fact of a particular clip. Where: a mouth is a red patch of a plausible size with
skin on all four sides, in the same place in most frames. How far open: the distance of the lower lip's edge from the
row of the mouth's corners. The lower half alone is used because teeth, white and under the upper lip, would hide the
mouth in a blurred picture. Made for the mouths of `tools/talking_heads.py`, also blurred, noisy, compressed,
reconstructed or generated. On filmed faces, whose lips are paler, it often finds no mouth; where it finds one the
number means little.
"""

from dataclasses import dataclass

from jaxtyping import Float, UInt8
import numpy as np

from common.errors import MediaError

SIDE = 160
"""Pictures are measured at this length of their short side, or smaller."""
VOTER_STEP = 5
"""Every so manieth frame says where the mouth is; the others stand between."""
CONTRASTS = (0.14, 0.09, 0.06, 0.04)
"""Redness above the surroundings at which patches are cut out; lips on sharp pictures have 0.17 to 0.27."""
MIN_LIPS = 0.15
"""Least contrast of mouth and skin, in R - 2 G and in units of the skin's mean brightness; sharp pictures have 0.9."""
WIDTHS = (0.05, 0.36)
"""Plausible widths of a mouth, in units of the picture's short side."""
PALEST = 0.6
"""Share of the strongest mouth's contrast that another one in the picture must have."""
SEEN_SHARE = 0.7
"""Share of the frames in which the mouth must be seen."""


class NoMouthError(MediaError):
    """No mouth was found, or it was lost for too long."""

    def __init__(self, found: str = "no mouth found") -> None:
        super().__init__(found)


@dataclass(frozen=True)
class Patch:
    """A red patch with skin around it: centre and size in pixels, frame index, mean redness above its surroundings."""

    x: float
    y: float
    width: float
    height: float
    frame: int
    contrast: float


def mouth_opening(frames: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, " N"]:
    """Height of the mouth, lips included, in units of its width (0…1) in every frame; NaN where it is not seen.

    In a picture with several heads it is the most mouth-like one's; `mouth_openings` has all. Raises NoMouthError.
    """
    return max(_openings(frames), key=lambda found: found[0])[2]


def mouth_openings(frames: UInt8[np.ndarray, "N H W 3"]) -> list[Float[np.ndarray, " N"]]:
    """`mouth_opening` of every mouth that is seen throughout, from left to right. Raises NoMouthError."""
    return [opening for _, _, opening in sorted(_openings(frames), key=lambda found: found[1])]


def _openings(frames: np.ndarray) -> list[tuple[float, float, np.ndarray]]:
    """(contrast, x, opening) of every mouth that is seen in enough frames; eyebrows are too pale beside one."""
    small = _shrink(frames)
    found = []
    for patches in find_mouths(small):
        opening = _measure(small, patches)
        if np.isfinite(opening).mean() >= SEEN_SHARE:
            contrast, x = np.median([(patch.contrast, patch.x) for patch in patches], axis=0)
            found.append((float(contrast), float(x), opening))
    if not found:
        raise NoMouthError
    best = max(contrast for contrast, _, _ in found)
    return [one for one in found if one[0] >= PALEST * best]


def find_mouths(frames: UInt8[np.ndarray, "N H W 3"]) -> list[list[Patch]]:
    """Groups of patches that half of the asked frames agree on, at most one a frame: one group a mouth."""
    voters = range(0, len(frames), VOTER_STEP)
    groups: list[list[Patch]] = []
    for k in voters:
        taken: list[list[Patch]] = []
        for patch in sorted(_patches(frames[k], k), key=lambda patch: -patch.contrast):
            near = [group for group in groups if _is_near(group[-1], patch)]
            if any(_is_near(group[-1], patch) for group in taken):
                continue
            group = max(near, key=len) if near else []
            if not near:
                groups.append(group)
            group.append(patch)
            taken.append(group)
    return [group for group in groups if len(group) >= 0.5 * len(voters)]


def _is_near(one: Patch, other: Patch) -> bool:
    reach = 0.5 * max(one.width, other.width)
    return abs(one.x - other.x) < reach and abs(one.y - other.y) < reach


def _shrink(frames: np.ndarray) -> np.ndarray:
    import cv2

    height, width = frames.shape[1:3]
    scale = SIDE / min(height, width)
    if scale >= 1:
        return frames
    size = (round(width * scale), round(height * scale))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def _smooth(frame: np.ndarray) -> np.ndarray:
    """The frame as float32 without its finest grain."""
    import cv2

    return cv2.GaussianBlur(frame.astype(np.float32), (0, 0), min(frame.shape[:2]) / 130)


def _patches(frame: np.ndarray, index: int) -> list[Patch]:
    """Every patch of one frame that may be a mouth.

    Redness is (R - G) / (R + G + B): 0.06 to 0.16 on skin, 0.33 on lips, 0.4 in the mouth.
    """
    import cv2

    smooth = _smooth(frame)
    redness = (smooth[..., 0] - smooth[..., 1]) / (smooth.sum(-1) + 12)
    side = min(redness.shape)
    byte = np.clip(redness * 510, 0, 255).astype(np.uint8)
    above = redness - cv2.medianBlur(byte, 2 * round(0.175 * side) + 1).astype(np.float32) / 510
    patches = []
    for contrast in CONTRASTS:
        count, labels, stats, centres = cv2.connectedComponentsWithStats((above > contrast).astype(np.uint8))
        for i in range(1, count):
            left, top, width, height, area = (int(v) for v in stats[i])
            if (WIDTHS[0] * side <= width <= WIDTHS[1] * side and 0.8 <= width / height <= 9
                    and area >= 0.45 * width * height and _is_on_skin(frame, left, top, width, height)):
                x, y = (float(v) for v in centres[i])
                patches.append(Patch(x, y, width, height, index, float(above[labels == i].mean())))
    return patches


def _is_on_skin(frame: np.ndarray, left: int, top: int, width: int, height: int) -> bool:
    """Whether left of, right of, above and below a box the picture has one and the same skin colour."""
    gap, thick = max(2, round(0.12 * width)), max(2, round(0.12 * width))
    height_all, width_all = frame.shape[:2]
    if left - gap - thick < 0 or top - gap - thick < 0:
        return False
    if left + width + gap + thick > width_all or top + height + gap + thick > height_all:
        return False
    sides = [frame[top:top + height, left - gap - thick:left - gap],
             frame[top:top + height, left + width + gap:left + width + gap + thick],
             frame[top - gap - thick:top - gap, left + width // 4:left + width - width // 4],
             frame[top + height + gap:top + height + gap + thick, left + width // 4:left + width - width // 4]]
    colours = np.stack([np.median(side.reshape(-1, 3), axis=0) for side in sides]) + 1.0
    light = colours.sum(1)
    share = colours / light[:, None]
    red, green, blue = share.T
    is_skin = (red > green + 0.015) & (red < green + 0.26) & (green > blue - 0.01)
    return bool(is_skin.all() and light.max() < 1.7 * light.min() and np.ptp(share, axis=0).max() < 0.05)


def _measure(frames: np.ndarray, patches: list[Patch]) -> np.ndarray:
    """Follow a mouth from where the voters saw it; its height in units of its width in every frame, or NaN."""
    # One width for the whole clip, near the widest: blur, opening and rounding make patches narrower, never wider.
    width = float(np.percentile([patch.width for patch in patches], 90))
    known = [patch.frame for patch in patches]
    xs = np.interp(np.arange(len(frames)), known, [patch.x for patch in patches])
    ys = np.interp(np.arange(len(frames)), known, [patch.y for patch in patches])
    windows = [_window(frame, x, y, width) for frame, x, y in zip(frames, xs, ys, strict=True)]
    contrasts = np.array([np.percentile(window, 96) for window in windows])
    lips = float(np.median(contrasts))
    if lips <= MIN_LIPS:
        return np.full(len(frames), np.nan)
    softs = (_alone(np.clip(window / (0.9 * lips) - 0.05, 0, 1)) for window in windows)
    heights = np.array([2 * _lower_height(soft, width) for soft in softs])
    return np.where(contrasts > max(MIN_LIPS, 0.35 * lips), np.clip(heights / width, 0, 1), np.nan)


def _window(frame: np.ndarray, x: float, y: float, width: float) -> np.ndarray:
    """R - 2 G above that of the skin, in units of the skin's brightness, around a mouth; centred sideways.

    Linear, so that blur moves no edge, and about equal on lips and in the dark of the mouth, whatever the skin.
    """
    half_x, half_y = round(0.70 * width), round(0.62 * width)
    smooth = _smooth(frame)
    rows = np.clip(np.arange(round(y) - half_y, round(y) + half_y + 1), 0, len(frame) - 1)
    for _ in range(2):
        columns = np.clip(np.arange(round(x) - half_x, round(x) + half_x + 1), 0, frame.shape[1] - 1)
        part = smooth[rows][:, columns]
        skin = np.median(np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]]), axis=0)
        window = ((part - skin) @ np.array([1, -2, 0])) / (skin.mean() + 1)
        weight = np.clip(window - 0.5 * MIN_LIPS, 0, 1)
        if weight.sum() > 0:
            x += float((weight.sum(0) * np.arange(-half_x, half_x + 1)).sum() / weight.sum())
    return window


def _alone(soft: np.ndarray) -> np.ndarray:
    """The patch of `soft` that lies most in the middle, and its soft edge; hair and shirt beside it become 0."""
    import cv2

    height, width = soft.shape
    rows, columns = np.mgrid[-1:1:height * 1j, -1:1:width * 1j]
    count, labels = cv2.connectedComponents((soft > 0.35).astype(np.uint8), connectivity=8)
    central = np.clip(1 - rows ** 2 - columns ** 2, 0, None) * soft
    mass = np.bincount(labels.ravel(), central.ravel(), minlength=max(2, count))
    patch = (labels == 1 + int(np.argmax(mass[1:]))).astype(np.uint8)
    return soft * cv2.dilate(patch, np.ones((5, 5), np.uint8))


def _lower_height(soft: np.ndarray, width: float) -> float:
    """Mean distance in pixels from the corners' row to the lower lip's edge; `soft` ``h w``: 0 skin, 1 mouth.

    Corners and middle are looked for within the mouth's present width, so that its spread moves the result little.
    """
    columns = np.arange(soft.shape[1])
    profile = soft.max(0)
    if profile.sum() < 1:
        return float("nan")
    middle = (profile * columns).sum() / profile.sum()
    half = float(np.clip(profile.sum() / 2, 0.28 * width, 0.6 * width))
    away = np.abs(columns - middle) / half
    corners = soft[:, (away > 0.6) & (away < 1.1)].sum(1)
    if corners.sum() < 0.5:
        return float("nan")
    rows = np.arange(len(soft))
    corner_row = (corners * rows).sum() / corners.sum()
    filled = np.maximum.accumulate(soft[::-1, away < 0.35], axis=0)[::-1]
    return float((filled.mean(1) * np.clip(rows - corner_row + 0.5, 0, 1)).sum())
