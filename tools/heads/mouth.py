"""The mouth: its shape from opening and spread, and painting it."""

from jaxtyping import Float
import numpy as np

from tools.heads.canvas import Canvas
from tools.heads.face import MOUTH_Y, Face

UPPER, UPPER_MOVES = 0.024, 0.058
LOWER, LOWER_MOVES = 0.028, 0.108
"""Height of each lip above or below the corners when closed, and what full opening adds: the lower jaw does most."""
SPREADS = 0.20
"""Share of its width by which full spread widens the mouth, or rounds it."""
NARROWS = 0.012
"""Half width that full opening takes."""
MARGIN = 0.016
"""What `mouth_box` adds on each side."""
DARK, TEETH, TONGUE = (52, 16, 22), (236, 232, 222), (150, 62, 66)


def mouth_box(face: Face) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of all that the mouth can cover, lips included, and a small margin; head's units."""
    half = face.mouth * (1 + SPREADS) + MARGIN
    return -half, MOUTH_Y - UPPER - UPPER_MOVES - MARGIN, half, MOUTH_Y + LOWER + LOWER_MOVES + MARGIN


def lens(half: float, up: float, down: float, count: int = 24) -> Float[np.ndarray, "P 2"]:
    """Points of a mouth-like shape around the corners' line: `up` above it and `down` below."""
    angle = np.linspace(0, np.pi, count)
    cosine, sine = half * np.cos(angle), np.sin(angle) ** 0.9
    return np.concatenate([np.stack([cosine, -up * sine], 1), np.stack([-cosine, down * sine], 1)[1:-1]]) + (0, MOUTH_Y)


def paint_mouth(canvas: Canvas, face: Face, opening: float, spread: float) -> None:
    """Paint lips, the dark between them, upper teeth and tongue."""
    half = face.mouth * (1 + SPREADS * spread) - NARROWS * opening
    up, down = UPPER + UPPER_MOVES * opening, LOWER + LOWER_MOVES * opening
    canvas.fill(lens(half, up, down), face.lips)
    inner, inner_up, inner_down = 0.82 * half, 0.003 + 0.050 * opening, 0.003 + 0.094 * opening
    canvas.fill(lens(inner, inner_up, inner_down), DARK)
    if opening > 0.05:
        angle = np.linspace(0.15 * np.pi, 0.85 * np.pi, 16)
        top = np.stack([0.95 * inner * np.cos(angle), -0.92 * inner_up * np.sin(angle)], 1)
        bottom = top[::-1] * (1, 0) + (0, -0.92 * inner_up + 0.034 * min(1.0, 2 * opening))
        canvas.fill(np.concatenate([top, np.maximum(bottom, top[::-1])]) + (0, MOUTH_Y), TEETH, min(1.0, 4 * opening))
        angle = np.linspace(0, np.pi, 16)
        low = np.stack([0.62 * inner * np.cos(angle), inner_down * (0.45 + 0.45 * np.sin(angle))], 1)
        high = np.stack([-0.62 * inner * np.cos(angle), inner_down * (0.45 - 0.12 * np.sin(angle))], 1)
        canvas.fill(np.concatenate([low, high]) + (0, MOUTH_Y), TONGUE, min(1.0, 2 * opening))
