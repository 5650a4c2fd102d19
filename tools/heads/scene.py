"""Scenes: who is in the picture, before which wall, in what light, and how heads and camera move."""

from dataclasses import dataclass

from jaxtyping import Float
import numpy as np

from tools.heads.background import KINDS, WALLS
from tools.heads.canvas import Colour
from tools.heads.face import Face, draw_face


@dataclass(frozen=True)
class Light:
    """`side` in -1…1 (from the left to from the right), `strength`: share by which it brightens one side of a head,
    `colour`: factors of red, green and blue, the room's brightness among them."""

    side: float
    strength: float
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """All that a clip shows but the mouths' movement; `seed` gives motion and the details of the background.

    `background`: one of `background.KINDS`; `drift`: how much the camera pans and zooms, 0 for none.
    """

    seed: int
    faces: tuple[Face, ...]
    background: str
    wall: Colour
    light: Light
    drift: float
    caption: str


def draw_scene(seed: int, heads: int = 1) -> Scene:
    """The scene of a seed with one head or two; its first face is `draw_face(seed)`. Raises ValueError."""
    if heads not in (1, 2):
        raise ValueError(f"{heads} heads; a scene has 1 or 2")
    rng = np.random.default_rng([seed, 17])
    faces = tuple(draw_face(seed, head) for head in range(heads))
    wall, kind = str(rng.choice(list(WALLS))), str(rng.choice(KINDS))
    warmth, level = rng.uniform(-1, 1), rng.uniform(0.82, 1.04)
    light = Light(side=float(rng.choice([-1, 1]) * rng.uniform(0.4, 1)), strength=float(rng.uniform(0.05, 0.32)),
                  colour=(float(level * (1 + 0.06 * warmth)), float(level), float(level * (1 - 0.10 * warmth))))
    drift = float(rng.uniform(0.3, 1)) if rng.random() < 0.6 else 0.0
    room = f"{wall} wall" + (f" with {kind}" if kind else "")
    if heads == 1:
        caption = f"A talking head: {faces[0].words}, {room}."
    else:
        caption = f"Two talking heads: {faces[0].words} on the left, {faces[1].words} on the right, {room}."
    return Scene(seed, faces, kind, WALLS[wall], light, drift, caption)


def head_motion(seed: int, head: int, times: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 4"]:
    """A head's way at `times` in seconds: shift right and down in units of the side, tilt in radians, scale about 1."""
    rng = np.random.default_rng([seed, 23, head])
    reach = np.array([0.020, 0.011, 0.055, 0.022]) * rng.uniform(0.5, 1, 4)
    slow, quick = rng.uniform(0.12, 0.30, 4), rng.uniform(0.4, 0.75, 4)
    phases = rng.uniform(0, 2 * np.pi, (2, 4))
    way = np.sin(2 * np.pi * slow * times[:, None] + phases[0]) * 0.75
    way = reach * (way + 0.25 * np.sin(2 * np.pi * quick * times[:, None] + phases[1]))
    return way + np.array([0, 0, 0, 1])


def camera_motion(scene: Scene, times: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 3"]:
    """The picture's slow way at `times`: shift right and down in units of the side, zoom about 1."""
    rng = np.random.default_rng([scene.seed, 29])
    reach = scene.drift * np.array([0.030, 0.015, 0.030]) * rng.uniform(0.6, 1, 3)
    speed, phase = rng.uniform(0.06, 0.14, 3), rng.uniform(0, 2 * np.pi, 3)
    return reach * np.sin(2 * np.pi * speed * times[:, None] + phase) + np.array([0, 0, 1])


def blinks(seed: int, head: int, frames: int) -> Float[np.ndarray, " N"]:
    """How far the lids are closed in each frame, 0…1: a blink of five frames every two to four seconds."""
    rng = np.random.default_rng([seed, 37, head])
    shut = np.zeros(frames)
    start = int(rng.integers(5, 70))
    while start < frames:
        shut[start:start + 5] = (0.5, 1, 1, 1, 0.5)[:len(shut[start:start + 5])]
        start += int(rng.integers(50, 100))
    return shut
