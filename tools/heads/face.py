"""Faces: what a seed says a person looks like, and the words for it."""

from dataclasses import dataclass

import numpy as np

from tools.heads.canvas import Colour

SKINS: dict[str, Colour] = {"fair": (226, 194, 174), "light": (222, 182, 152), "tan": (214, 164, 122),
                            "olive": (196, 154, 112), "brown": (156, 104, 70), "dark": (104, 70, 52)}
LIPS: dict[str, Colour] = {"fair": (180, 74, 78), "light": (174, 68, 70), "tan": (172, 66, 66),
                           "olive": (164, 58, 62), "brown": (148, 46, 50), "dark": (140, 44, 50)}
HAIRS: dict[str, Colour] = {"blond": (214, 176, 92), "brown": (92, 58, 34), "black": (34, 30, 32),
                            "red": (156, 80, 40), "grey": (150, 150, 150)}
SHIRTS: dict[str, Colour] = {"red": (170, 42, 48), "white": (230, 230, 226), "navy": (34, 44, 88),
                             "green": (44, 110, 70), "black": (40, 40, 44), "yellow": (220, 186, 70),
                             "purple": (96, 56, 128)}
HATS: dict[str, Colour] = {"blue": (52, 82, 160), "grey": (116, 118, 124), "green": (52, 104, 72),
                           "white": (226, 224, 218)}
STYLES = ("short", "long", "curly")
MOUTH_Y = 0.15
"""The line between closed lips, below the head's middle."""


@dataclass(frozen=True)
class Face:
    """What stays the same of a person in one clip; lengths in units of the picture's side, `words` for the caption.

    `width`, `height`: half axes of the face; `jaw`: how much narrower it is at the chin; `mouth`: half the width of the
    closed mouth at spread 0; `collar`: the neckline's half width, 0 for none.
    """

    skin: Colour
    lips: Colour
    hair: Colour
    style: str
    shirt: Colour
    hat: Colour | None
    has_glasses: bool
    eye: Colour
    width: float
    height: float
    jaw: float
    mouth: float
    eye_gap: float
    eye_size: float
    brow: float
    nose: float
    shoulders: float
    collar: float
    words: str


def draw_face(seed: int, head: int = 0) -> Face:
    """The face of a seed; `head` 1 is the second person of a two-head scene."""
    rng = np.random.default_rng([seed, 11, head])
    skin, hair, style, shirt = (str(rng.choice(list(names))) for names in (SKINS, HAIRS, STYLES, SHIRTS))
    hat = str(rng.choice(list(HATS))) if rng.random() < 0.2 else None
    has_glasses = bool(rng.random() < 0.25)
    extras = [*([f"a {hat} hat"] if hat else []), *(["glasses"] if has_glasses else [])]
    words = f"a person with {skin} skin and {style} {hair} hair"
    if extras:
        words = f"a person with {skin} skin, {style} {hair} hair and {' and '.join(extras)}"
    return Face(
        skin=SKINS[skin], lips=LIPS[skin], hair=HAIRS[hair], style=style, shirt=SHIRTS[shirt],
        hat=HATS[hat] if hat else None, has_glasses=has_glasses,
        eye=(int(rng.integers(40, 110)), int(rng.integers(60, 120)), int(rng.integers(60, 140))),
        width=float(rng.uniform(0.268, 0.31)), height=float(rng.uniform(0.385, 0.42)), jaw=float(rng.uniform(0, 0.14)),
        mouth=float(rng.uniform(0.124, 0.134)), eye_gap=float(rng.uniform(0.112, 0.132)),
        eye_size=float(rng.uniform(0.9, 1.12)), brow=float(rng.uniform(0.056, 0.072)),
        nose=float(rng.uniform(0.016, 0.026)), shoulders=float(rng.uniform(0.42, 0.52)),
        collar=float(rng.choice([0.0, 0.10, 0.15])), words=f"{words} in a {shirt} shirt")
