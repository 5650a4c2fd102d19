"""What a trained file says about its making."""

from types import SimpleNamespace
from typing import Any

from training.outcome import usual_fps


def plan(*clips: tuple[str, float, bool], conditions: bool = False) -> Any:
    """(kind, frames a second, has sound) of each clip."""
    items = [SimpleNamespace(kind=kind, fps=fps, sound="sound" if heard else None) for kind, fps, heard in clips]
    return SimpleNamespace(clips=[SimpleNamespace(item=item) for item in items],
                           conditions={"omniavatar_add": None} if conditions else {})


def test_pictures_do_not_decide_the_frame_rate_of_videos() -> None:
    pictures = [("image", 16.0, False)] * 5
    assert usual_fps(plan(*pictures, ("video", 25.0, True))) == 25.0
    assert usual_fps(plan(*pictures)) == 16.0


def test_where_a_condition_hears_clips_with_sound_decide() -> None:
    clips = (("video", 16.0, False), ("video", 16.0, False), ("video", 25.0, True))
    assert usual_fps(plan(*clips)) == 16.0
    assert usual_fps(plan(*clips, conditions=True)) == 25.0
