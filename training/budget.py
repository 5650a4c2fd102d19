"""A budget of tokens: how many clips a batch may hold, and how much of a long clip is shown."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from common.errors import ConfigError
from common.logs import get_logger
from common.timebase import latent_frame_count, video_frame_count
from dataset.plan import TrainingItem

log = get_logger(__name__)

_SHOWN = 10


def frame_tokens(clip: TrainingItem, patch: tuple[int, int, int]) -> int:
    """Tokens of one latent frame of `clip`."""
    return (clip.sizes["H"] // patch[1]) * (clip.sizes["W"] // patch[2])


def tokens(clip: TrainingItem, patch: tuple[int, int, int]) -> int:
    """Tokens of `clip` as far as it is shown."""
    return latent_frame_count(clip.frames) // patch[0] * frame_tokens(clip, patch)


def within_budget(clips: Sequence[TrainingItem], max_tokens: int, patch: tuple[int, int, int], *,
                  needs_end: bool = False) -> list[TrainingItem]:
    """The clips, none above `max_tokens`, each knowing how many samples of it fit into a batch.

    A clip that is too long keeps its start, the longest 4n+1 that fits; one line tells how many. ConfigError names the
    clips of which not even one latent frame fits, and with `needs_end` (first+last frame models) those too long.
    """
    fitted, shortened = [], []
    too_large: list[str] = []
    for clip in clips:
        latent_frames = max_tokens // frame_tokens(clip, patch) * patch[0]
        if latent_frames < 1:
            too_large.append(f"{clip.name} ({frame_tokens(clip, patch)} tokens a latent frame)")
            continue
        short = clip.cut(video_frame_count(latent_frames))
        if short is not clip:
            shortened.append((clip, short))
        fitted.append(replace(short, most=max_tokens // tokens(short, patch)))
    if too_large:
        raise ConfigError(f"--max_tokens {max_tokens} holds not even one latent frame of {_names(too_large)}. Raise "
                          "it, or cache these clips at a smaller resolution.")
    if needs_end and shortened:
        raise ConfigError(f"--max_tokens {max_tokens} would shorten {_names([clip.name for clip, _ in shortened])}, "
                          "and a first+last frame model is given the last frame. Raise it, or lower target_frames.")
    if shortened:
        kinds = Counter((clip.frames, short.frames) for clip, short in shortened)
        log.info("--max_tokens %d: %d of %d clips are shown from their start alone: %s", max_tokens, len(shortened),
                 len(clips), ", ".join(f"{count} with {b} of {a} frames" for (a, b), count in sorted(kinds.items())))
    return fitted


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
