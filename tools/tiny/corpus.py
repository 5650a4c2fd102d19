"""The text that the tiny tokenizer is trained on: captions as people write them, made from parts."""

from itertools import product

from tools.heads.scene import draw_scene

PEOPLE = ("a young woman", "an old man", "a news presenter", "a teacher with glasses", "a girl in a red dress",
          "a man with a beard", "two friends", "a singer", "a doctor in a white coat", "a child")
ACTIONS = ("is talking to the camera", "speaks calmly and nods", "smiles and looks to the left", "explains something",
           "sings with open arms", "laughs", "turns the head slowly", "raises both hands while speaking",
           "reads from a sheet of paper", "listens and blinks")
PLACES = ("in a bright studio", "in front of a blue wall", "on a street at night", "in a kitchen",
          "by the sea at sunset", "in a green forest", "at a desk with a microphone", "in a quiet library",
          "under a cloudy sky", "on a stage")
CAMERAS = ("close-up, soft light", "medium shot, realistic, high quality", "the camera moves slowly to the right",
           "static camera, natural colours", "slow motion, shallow depth of field", "the camera zooms in",
           "wide shot, cinematic, 25 frames per second", "handheld camera, film grain", "portrait, sharp focus",
           "pan left, then tilt up")
OTHERS = (
    "A cat walks over the grass and looks at a bird in the tree.",
    "Waves roll on to the beach while the sun goes down behind the mountains.",
    "A red car drives through the rain; the road reflects the lights of the city.",
    "Steam rises from a cup of coffee on a wooden table beside an open book.",
    "Snow falls on the roofs of a small village, and smoke comes from the chimneys.",
    "Bright tones, overexposed, static, blurred details, subtitles, worst quality, low quality, ugly, deformed.",
    "Extra fingers, poorly drawn hands, poorly drawn faces, messy background, three legs, walking backwards.",
    "0 1 2 3 4 5 6 7 8 9 10 16 24 25 30 81 480 832 720 1280, frame, frames, second, seconds.",
    "QUICK zebras JUMP over lazy dogs; vexed wizards BOX five KINGS! Why? \"Because,\" (she) said: it's fun & loud.",
)

RENDERED = 200
"""Captions of rendered heads, of scenes that no bank and no demo shows; every fifth has two heads."""
FIRST_RENDERED = 5000


def sentences() -> list[str]:
    """More than a thousand captions in a fixed order."""
    made = [f"{who.capitalize()} {does} {where}, {CAMERAS[(a + 2 * b + 3 * c) % len(CAMERAS)]}."
            for (a, who), (b, does), (c, where) in product(enumerate(PEOPLE), enumerate(ACTIONS), enumerate(PLACES))]
    heads = [draw_scene(FIRST_RENDERED + i, 2 if i % 5 == 0 else 1).caption for i in range(RENDERED)]
    return [*made, *heads, *OTHERS * 3]
