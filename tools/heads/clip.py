"""Pictures of a scene whose mouths follow given curves."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float32, Int, UInt8
import numpy as np

from tools.heads.background import paint_background
from tools.heads.canvas import SOFTNESS, Canvas
from tools.heads.face import Face
from tools.heads.laws import FPS, MouthCurves
from tools.heads.mouth import mouth_box, paint_mouth
from tools.heads.person import BLINKS, paint_person
from tools.heads.scene import Light, Scene, blinks, camera_motion, head_motion

OVERSAMPLING = 2
"""Pixels of the painted heads for one of the picture."""
HEAD_Y = 0.50
"""Where a head's middle rests in the picture."""
BODY_FOLLOWS = 0.35
"""Share of the head's shift that the body makes."""


@dataclass(frozen=True)
class Rendered:
    """`pictures`: RGB; `boxes`: x0 y0 x1 y1 in pixels (x1, y1 exclusive) of each mouth at its largest and a margin."""

    pictures: UInt8[np.ndarray, "N H W 3"]
    boxes: Int[np.ndarray, "N heads 4"]


def render_clip(scene: Scene, mouths: Sequence[MouthCurves], *, size: int, frames: int) -> Rendered:
    """Render `frames` pictures, `size` pixels high and `size` wide for each head, mouths from left to right.

    Heads sway, tilt, nod and blink, the camera drifts; a mouth moves by its curves alone. Raises ValueError where the
    mouths are not one a head or their curves not one value a frame.
    """
    if len(mouths) != len(scene.faces) or any(len(c) != frames for m in mouths for c in (m.opening, m.spread)):
        raise ValueError(f"mouths of {[len(m.opening) for m in mouths]} values for {len(scene.faces)} heads and "
                         f"{frames} frames; one a head with one value a frame is needed")
    heads = len(scene.faces)
    shape = (size, size * heads)
    times = np.arange(frames) / FPS
    wall = paint_background(scene.background, scene.wall, scene.seed, width=heads, scale=size)
    wall.rgba[..., :3] *= np.array(scene.light.colour, np.float32)
    actors = [_Actor(scene, head, mouths[head], times, size) for head in range(heads)]
    pictures, boxes = np.empty((frames, *shape, 3), np.uint8), np.empty((frames, heads, 4), np.int64)
    for k, (right, down, zoom) in enumerate(camera_motion(scene, times)):
        camera = _move(heads / 2 + right, 0.5 + down) @ _turn(0, zoom) @ _move(-heads / 2, -0.5)
        picture = wall.place(camera, size, shape, endless=True)[..., :3]
        for actor in actors:
            for layer in actor.layers(k, camera, shape):
                picture = picture * (1 - layer[..., 3:]) + layer[..., :3]
        pictures[k] = np.clip(picture * 255 + 0.5, 0, 255)
        boxes[k] = [actor.mouth_box(k, camera, shape) for actor in actors]
    return Rendered(pictures, boxes)


class _Actor:
    """One person of a scene, with its way through the clip."""

    def __init__(self, scene: Scene, head: int, mouth: MouthCurves, times: np.ndarray, size: int) -> None:
        self.face: Face = scene.faces[head]
        self.home, self.size, self.mouth = head + 0.5, size, mouth
        self.motion = head_motion(scene.seed, head, times)
        self.blinks = blinks(scene.seed, head, len(times))
        person = paint_person(self.face, OVERSAMPLING * size)
        left, top, right, bottom = mouth_box(self.face)
        self.rows, self.columns, self.around_mouth = person.heads[0].part(left, top, right, bottom)
        self.mouth_light = _light(scene.light, person.heads[0])[self.rows, self.columns]
        for canvas in (person.behind, person.body, *person.heads):
            if canvas is not None:
                canvas.rgba[..., :3] *= _light(scene.light, canvas)
        self.person = person

    def layers(self, k: int, camera: np.ndarray, shape: tuple[int, int]) -> list[Float32[np.ndarray, "H W 4"]]:
        """Frame k's pictures of hair, body and head, from behind to front."""
        head, body = camera @ self._head_matrix(k), camera @ self._body_matrix(k)
        behind = [] if self.person.behind is None else [self.person.behind.place(head, self.size, shape)]
        canvas = self.person.heads[BLINKS.index(float(self.blinks[k]))]
        patch = self.around_mouth.copy()
        paint_mouth(patch, self.face, float(self.mouth.opening[k]), float(self.mouth.spread[k]))
        patch.blur(SOFTNESS)
        patch.rgba[..., :3] *= self.mouth_light
        canvas.rgba[self.rows, self.columns] = patch.rgba
        return [*behind, self.person.body.place(body, self.size, shape), canvas.place(head, self.size, shape)]

    def mouth_box(self, k: int, camera: np.ndarray, shape: tuple[int, int]) -> list[int]:
        """Frame k's box around the mouth in pixels, inside the picture."""
        left, top, right, bottom = mouth_box(self.face)
        corners = np.array([(left, top, 1), (right, top, 1), (left, bottom, 1), (right, bottom, 1)])
        x, y = self.size * (camera @ self._head_matrix(k) @ corners.T)[:2]
        low = np.floor([x.min(), y.min()]).clip(0)
        high = np.minimum(np.ceil([x.max(), y.max()]), (shape[1], shape[0]))
        return [int(v) for v in (*low, *high)]

    def _head_matrix(self, k: int) -> np.ndarray:
        right, down, tilt, scale = self.motion[k]
        neck = 0.35
        return _move(self.home + right, HEAD_Y + down + neck) @ _turn(tilt, scale) @ _move(0, -neck)

    def _body_matrix(self, k: int) -> np.ndarray:
        right, down, _, scale = self.motion[k]
        shift = _move(self.home + BODY_FOLLOWS * right, HEAD_Y + BODY_FOLLOWS * down)
        return shift @ _turn(0, 1 + BODY_FOLLOWS * (scale - 1))


def _light(light: Light, canvas: Canvas) -> Float32[np.ndarray, "H W 3"]:
    """Factors of a person's colours: brighter on the lit side, a little darker below."""
    x, y = canvas.grid()
    side = 1 + light.side * light.strength * np.tanh(x / 0.22)
    factors = side[None, :, None] * (1 - 0.12 * np.clip(y, -0.4, 0.6))[:, None, None] * np.array(light.colour)
    return factors.astype(np.float32)


def _move(right: float, down: float) -> np.ndarray:
    return np.array([[1, 0, right], [0, 1, down], [0, 0, 1.0]])


def _turn(angle: float, scale: float) -> np.ndarray:
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1.0]])
