"""A canvas with transparency in units of the picture's side: soft polygons on it, and placing it in a picture."""

from dataclasses import dataclass

from jaxtyping import Float, Float32
import numpy as np

Colour = tuple[int, int, int]
"""RGB in 0…255."""
SOFTNESS = 0.004
"""Deviation of the blur over people, in units of the picture's side: half a pixel of 128."""
_BITS = 5


@dataclass
class Canvas:
    """`rgba` in 0…1, colours multiplied by alpha; `left`, `top`: its corner in units; `scale`: pixels a unit."""

    rgba: Float32[np.ndarray, "H W 4"]
    left: float
    top: float
    scale: float

    @classmethod
    def empty(cls, left: float, top: float, right: float, bottom: float, scale: float) -> "Canvas":
        """A transparent canvas of at least the given box."""
        height, width = int(np.ceil((bottom - top) * scale)), int(np.ceil((right - left) * scale))
        return cls(np.zeros((height, width, 4), np.float32), left, top, scale)

    def copy(self) -> "Canvas":
        """A canvas with pixels of its own."""
        return Canvas(self.rgba.copy(), self.left, self.top, self.scale)

    def part(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice, "Canvas"]:
        """(rows, columns, copy) of a box."""
        x0, y0 = int((left - self.left) * self.scale), int((top - self.top) * self.scale)
        x1, y1 = int(np.ceil((right - self.left) * self.scale)), int(np.ceil((bottom - self.top) * self.scale))
        rows, columns = slice(y0, y1), slice(x0, x1)
        return rows, columns, Canvas(self.rgba[rows, columns].copy(), self.left + x0 / self.scale,
                                     self.top + y0 / self.scale, self.scale)

    def grid(self) -> tuple[Float[np.ndarray, " W"], Float[np.ndarray, " H"]]:
        """x of every column's and y of every row's middle."""
        height, width = self.rgba.shape[:2]
        return self.left + (np.arange(width) + 0.5) / self.scale, self.top + (np.arange(height) + 0.5) / self.scale

    def fill(self, points: Float[np.ndarray, "P 2"], colour: Colour, opacity: float = 1.0, soft: float = 0.0) -> None:
        """Paint a polygon; `soft`: blur of its edge in units."""
        import cv2

        mask = np.zeros(self.rgba.shape[:2], np.uint8)
        cv2.fillPoly(mask, [self._fixed(points)], 255, cv2.LINE_AA, _BITS)
        self._paint(mask, colour, opacity, soft)

    def stroke(self, points: Float[np.ndarray, "P 2"], colour: Colour, width: float, *, opacity: float = 1.0,
               soft: float = 0.0, closed: bool = False) -> None:
        """Paint a line of a width in units."""
        import cv2

        mask = np.zeros(self.rgba.shape[:2], np.uint8)
        thick = max(1, round(width * self.scale))
        cv2.polylines(mask, [self._fixed(points)], closed, 255, thick, cv2.LINE_AA, _BITS)
        self._paint(mask, colour, opacity, soft)

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        pixels = (points - (self.left, self.top)) * self.scale - 0.5
        return np.round(pixels * 2 ** _BITS).astype(np.int32)

    def _paint(self, mask: np.ndarray, colour: Colour, opacity: float, soft: float) -> None:
        import cv2

        if soft:
            mask = cv2.GaussianBlur(mask, (0, 0), soft * self.scale)
        share = mask[..., None] * np.float32(opacity / 255)
        self.rgba += share * (np.array([*(v / 255 for v in colour), 1], np.float32) - self.rgba)

    def blur(self, soft: float) -> None:
        """Blur everything, by a deviation in units."""
        import cv2

        self.rgba = cv2.GaussianBlur(self.rgba, (0, 0), soft * self.scale, borderType=cv2.BORDER_REPLICATE)

    def place(self, matrix: Float[np.ndarray, "3 3"], size: int, shape: tuple[int, int], *, endless: bool = False
              ) -> Float32[np.ndarray, "H W 4"]:
        """The canvas as seen in a picture of `shape` = (height, width) pixels and `size` pixels a unit.

        `matrix` takes the canvas's units to the picture's. `endless`: beyond its edge the canvas goes on as there.
        """
        import cv2

        to_units = np.array([[1 / self.scale, 0, self.left + 0.5 / self.scale],
                             [0, 1 / self.scale, self.top + 0.5 / self.scale], [0, 0, 1]])
        to_pixels = np.array([[size, 0, -0.5], [0, size, -0.5], [0, 0, 1]])
        whole = to_pixels @ matrix @ to_units
        border = cv2.BORDER_REPLICATE if endless else cv2.BORDER_CONSTANT
        return cv2.warpAffine(self.rgba, whole[:2], (shape[1], shape[0]), flags=cv2.INTER_LINEAR, borderMode=border)


def ellipse(x: float, y: float, rx: float, ry: float, *, turn: float = 0.0, power: float = 1.0, count: int = 48
            ) -> Float[np.ndarray, "P 2"]:
    """Points of an ellipse; `power` below 1 makes it boxy, above 1 pointed; `turn` in radians."""
    angle = np.linspace(0, 2 * np.pi, count, endpoint=False)
    cosine, sine = np.cos(angle), np.sin(angle)
    points = np.stack([rx * np.sign(cosine) * np.abs(cosine) ** power, ry * np.sign(sine) * np.abs(sine) ** power], 1)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return points @ rotation + (x, y)


def box(left: float, top: float, right: float, bottom: float) -> Float[np.ndarray, "4 2"]:
    """Corners of a rectangle."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
