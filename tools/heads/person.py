"""A person painted once for a clip: hair behind, body, and the head with eyes open to shut; the mouth comes later."""

from dataclasses import dataclass

import numpy as np

from tools.heads.canvas import SOFTNESS, Canvas, Colour, box, ellipse
from tools.heads.face import Face

BLINKS = (0.0, 0.5, 1.0)
"""How far the lids are closed in the heads that are painted."""

BROW = np.array([(-0.055, 0.004), (-0.01, -0.012), (0.055, 0.0), (0.052, 0.012), (-0.01, 0.004), (-0.053, 0.016)])
"""Corners of the left eyebrow about its middle."""


@dataclass(frozen=True)
class Person:
    """Canvases in the head's units, with the head's middle at (0, 0): without light and, in `heads`, without mouth."""

    behind: Canvas | None
    body: Canvas
    heads: list[Canvas]


def paint_person(face: Face, scale: float) -> Person:
    """Paint a face's person at `scale` pixels a unit."""
    return Person(_hair_behind(face, scale), _body(face, scale), _heads(face, scale))


def darker(colour: Colour, share: float) -> Colour:
    """The colour at a share of its brightness."""
    red, green, blue = (int(min(255, v * share)) for v in colour)
    return red, green, blue


def head_outline(face: Face, grow: float = 1.0) -> np.ndarray:
    """Points of the face's edge: an ellipse, narrower towards the chin by `face.jaw`."""
    points = ellipse(0, 0.0, face.width * grow, face.height * grow, power=0.92, count=64)
    points[:, 0] *= 1 - face.jaw * np.clip(points[:, 1] / face.height, 0, 1) ** 1.5
    return points


def _hair_behind(face: Face, scale: float) -> Canvas | None:
    if face.style == "short":
        return None
    canvas = Canvas.empty(-0.5, -0.56, 0.5, 0.62, scale)
    if face.style == "long":
        canvas.fill(ellipse(0, 0.08, face.width * 1.30, face.height * 1.22, power=0.75), face.hair)
    else:
        canvas.fill(ellipse(0, -0.12, face.width * 1.36, face.height * 0.92), face.hair)
        for angle in np.linspace(np.pi * 0.95, np.pi * 2.05, 9):
            canvas.fill(ellipse(1.22 * face.width * np.cos(angle), -0.10 + 0.80 * face.height * np.sin(angle),
                                0.075, 0.075), face.hair)
    canvas.blur(SOFTNESS)
    return canvas


def _body(face: Face, scale: float) -> Canvas:
    canvas = Canvas.empty(-0.72, 0.10, 0.72, 0.90, scale)
    canvas.fill(ellipse(0, 0.74, face.shoulders, 0.34, power=0.72), face.shirt)
    canvas.fill(box(-0.105, 0.15, 0.105, 0.47), darker(face.skin, 0.80), soft=0.006)
    if face.collar:
        canvas.fill(np.array([(-face.collar, 0.42), (face.collar, 0.42), (0, 0.44 + face.collar)]),
                    darker(face.skin, 0.80), soft=0.006)
    canvas.fill(ellipse(0, 0.32, 0.16, 0.07), darker(face.skin, 0.62), 0.5, soft=0.02)
    canvas.blur(SOFTNESS)
    return canvas


def _heads(face: Face, scale: float) -> list[Canvas]:
    base = Canvas.empty(-0.5, -0.56, 0.5, 0.52, scale)
    for side in (-1, 1):
        base.fill(ellipse(side * face.width * 0.99, -0.02, 0.036, 0.065), darker(face.skin, 0.88))
    if face.style == "short":
        base.fill(ellipse(0, -0.12, face.width * 1.08, face.height * 0.80), face.hair)
    base.fill(head_outline(face), face.skin)
    nose = np.array([(0.0, -0.07), (face.nose, 0.02), (0.0, 0.035), (-face.nose, 0.02)])
    base.fill(nose, darker(face.skin, 0.80), 0.8, soft=0.008)
    _hair_in_front(base, face)
    heads = []
    for shut in BLINKS:
        canvas = base.copy()
        _eyes(canvas, face, shut)
        canvas.blur(SOFTNESS)
        heads.append(canvas)
    return heads


def _hair_in_front(canvas: Canvas, face: Face) -> None:
    edge = head_outline(face, 1.06)
    line = -0.205 if face.style != "curly" else -0.225
    top = edge[edge[:, 1] < line]
    top = top[np.argsort(top[:, 0])]
    across = np.linspace(top[-1, 0], top[0, 0], 20)
    fringe = line - 0.07 * (1 - (across / face.width) ** 2)
    canvas.fill(np.concatenate([top, np.stack([across, fringe], 1)]), face.hair, soft=0.004)
    if face.style == "long":
        for side in (-1, 1):
            strand = np.array([(0.80, -0.27), (1.16, -0.20), (1.24, 0.30), (1.0, 0.42), (1.03, 0.1)])
            canvas.fill(strand * (side * face.width, 1), face.hair, soft=0.006)
    if face.hat is not None:
        canvas.fill(np.concatenate([ellipse(0, -0.22, face.width * 1.14, 0.27)[24:], [(face.width * 1.14, -0.20)]]),
                    face.hat, soft=0.004)
        canvas.fill(ellipse(0, -0.225, face.width * 1.2, 0.045, power=0.6), darker(face.hat, 0.72), soft=0.005)


def _eyes(canvas: Canvas, face: Face, shut: float) -> None:
    size = face.eye_size
    red, green, blue = face.hair
    brow = (red // 3 + 46, green // 3 + 44, blue // 3 + 44)  # greyer than the hair: red brows would look like lips
    for side in (-1, 1):
        x, y = side * face.eye_gap, -0.085
        canvas.fill(ellipse(x, y, 0.056 * size, 0.036 * size), darker(face.skin, 0.84), soft=0.005)
        if shut < 1:
            open_ = 0.031 * size * (1 - shut)
            canvas.fill(ellipse(x, y, 0.048 * size, open_), (244, 244, 242))
            canvas.fill(ellipse(x, y, 0.024 * size, min(0.024 * size, open_)), face.eye)
            canvas.fill(ellipse(x, y, 0.011 * size, min(0.011 * size, open_)), (14, 14, 16))
        else:
            canvas.fill(ellipse(x, y + 0.006, 0.046 * size, 0.007), darker(face.skin, 0.5), soft=0.003)
        canvas.fill(BROW * (-side, 1) + (x, y - face.brow), brow, 0.9, soft=0.004)
    if face.has_glasses:
        for side in (-1, 1):
            canvas.stroke(ellipse(side * face.eye_gap, -0.080, 0.078, 0.062, power=0.8), (44, 44, 52), 0.014,
                          opacity=0.85, soft=0.003, closed=True)
        canvas.stroke(np.array([(-face.eye_gap + 0.078, -0.09), (face.eye_gap - 0.078, -0.09)]), (44, 44, 52), 0.014,
                      opacity=0.85, soft=0.003)
