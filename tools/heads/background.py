"""Backgrounds: a wall with a slow gradient, and simple soft things on it."""

from collections.abc import Callable

import numpy as np

from tools.heads.canvas import Canvas, Colour, box, ellipse

WALLS: dict[str, Colour] = {"blue": (58, 96, 150), "green": (70, 120, 84), "ochre": (178, 140, 72),
                            "grey": (120, 122, 128), "plum": (104, 66, 106), "beige": (200, 186, 160),
                            "teal": (52, 112, 118)}
AROUND = 0.25
"""How far the painted wall goes beyond the picture, in units of its side."""


def paint_background(kind: str, wall: Colour, seed: int, *, width: float, scale: float) -> Canvas:
    """A wall in the scene's units: the picture at rest is 0…`width` by 0…1. `kind` is one of `KINDS`."""
    rng = np.random.default_rng([seed, 31])
    canvas = Canvas.empty(-AROUND, -AROUND, width + AROUND, 1 + AROUND, scale)
    x, y = canvas.grid()
    slope = rng.uniform(-0.25, 0.25)
    ramp = 1.05 - 0.40 * np.clip(y, 0, 1)[:, None] + slope * (x / width - 0.5)[None]
    canvas.rgba[..., :3] = (np.array(wall) / 255 * ramp[..., None]).clip(0, 1)
    canvas.rgba[..., 3] = 1
    if kind:
        PAINTERS[kind](canvas, wall, rng, width)
    canvas.blur(0.008)
    return canvas


def _shade(wall: Colour, share: float) -> Colour:
    red, green, blue = (int(np.clip(v * share, 0, 255)) for v in wall)
    return red, green, blue


def _window(canvas: Canvas, wall: Colour, rng: np.random.Generator, width: float) -> None:
    left = rng.choice([-0.02, width - 0.30]) + rng.uniform(-0.06, 0.06)
    top, wide, high = rng.uniform(0.06, 0.14), 0.32, rng.uniform(0.40, 0.55)
    canvas.fill(box(left - 0.03, top - 0.03, left + wide + 0.03, top + high + 0.03), (214, 210, 202))
    canvas.fill(box(left, top, left + wide, top + high), (176, 204, 226))
    canvas.fill(box(left, top + 0.62 * high, left + wide, top + high), (128, 162, 130))
    canvas.fill(box(left + wide / 2 - 0.014, top, left + wide / 2 + 0.014, top + high), (214, 210, 202))


def _shelves(canvas: Canvas, wall: Colour, rng: np.random.Generator, width: float) -> None:
    books: list[Colour] = [(62, 86, 132), (74, 112, 84), (206, 196, 170), (96, 96, 108), (112, 84, 128)]
    for row in np.arange(rng.uniform(0.16, 0.24), 0.8, 0.27):
        x = -0.2
        while x < width + 0.2:
            thick, high = rng.uniform(0.05, 0.09), rng.uniform(0.12, 0.18)
            if rng.random() < 0.75:
                canvas.fill(box(x, row - high, x + thick, row), books[rng.integers(len(books))], 0.85)
            x += thick + 0.004
        canvas.fill(box(-AROUND, row, width + AROUND, row + 0.025), _shade(wall, 0.5))


def _stripes(canvas: Canvas, wall: Colour, rng: np.random.Generator, width: float) -> None:
    step, tone = rng.uniform(0.11, 0.18), rng.choice([0.72, 1.25])
    lean = rng.uniform(-0.3, 0.3)
    for x in np.arange(-AROUND - 0.4, width + AROUND + 0.4, step):
        stripe = box(x, -AROUND, x + step / 2, 1 + AROUND)
        canvas.fill(stripe + np.stack([lean * (stripe[:, 1] - 0.5), np.zeros(4)], 1), _shade(wall, tone), 0.7)


def _plants(canvas: Canvas, wall: Colour, rng: np.random.Generator, width: float) -> None:
    for foot in (rng.uniform(0.0, 0.12), width - rng.uniform(0.0, 0.12)):
        for angle in np.linspace(-1.0, 1.0, 7) + rng.uniform(-0.1, 0.1, 7):
            length, green = rng.uniform(0.20, 0.32), int(rng.integers(84, 130))
            middle = (foot + np.sin(angle) * length, 0.72 - np.cos(angle) * length * 1.2)
            canvas.fill(ellipse(*middle, 0.036, length * 0.85, turn=-angle), (green // 2, green, green * 5 // 8), 0.9)


def _lamps(canvas: Canvas, wall: Colour, rng: np.random.Generator, width: float) -> None:
    colours: list[Colour] = [(250, 222, 150), (236, 236, 244), (170, 206, 246)]
    for _ in range(int(9 * width)):
        x, y, r = rng.uniform(-0.1, width + 0.1), rng.uniform(-0.05, 0.75), rng.uniform(0.04, 0.09)
        canvas.fill(ellipse(x, y, r, r), colours[rng.integers(3)], rng.uniform(0.35, 0.7), soft=0.012)


PAINTERS: dict[str, Callable[[Canvas, Colour, np.random.Generator, float], None]] = {
    "a window": _window, "shelves": _shelves, "stripes": _stripes, "plants": _plants, "blurred lamps": _lamps}
"""Words of what is on a wall → what paints it."""
KINDS = ("", *PAINTERS)
"""All kinds of background; the first is the wall alone."""
