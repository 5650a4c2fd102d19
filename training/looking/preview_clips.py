"""Previews of held-out clips: their first frame, their sound and their caption as the inputs of a generation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic import atomic_path
from common.config import from_values
from common.errors import ConfigError
from common.timebase import AUDIO_SAMPLE_RATE_HZ, as_fraction
from dataset.media import load_media
from dataset.plan import TrainingItem
from inference.prompts import PromptEntry
from inference.request import GenerationRequest
from training.config import TrainConfig
from training.looking.preview_files import FOLDER, HELD_OUT, write_sound
from training.looking.validation import chosen
from training.preflight import Plan
from training.processes import Processes
from training.showing import REFERENCE, SOUND


def held_out_prompts(config: TrainConfig, plan: Plan, base: GenerationRequest, processes: Processes
                     ) -> list[PromptEntry]:
    """The first held-out clips, in the order in which they are measured, as prompts.

    Their pictures and sounds are written to ``sample/held_out``, where a record can name them. Raises ConfigError where
    there are too few clips, or media are absent: the caches hold no pictures.
    """
    wanted = config.previews.sample_held_out
    clips = shown_clips(plan, config.validation.validation_seed, wanted)
    absent = [clip.name for clip in clips if not clip.item.is_checked]
    if absent:
        raise ConfigError(f"--sample_held_out {wanted}: the media of {', '.join(absent[:4])} are not there, and caches "
                          "hold neither pictures nor sound. Bring them back to where the dataset TOML looks for them, "
                          "or name pictures and sounds of your own in --sample_prompts.")
    folder = config.saving.output_dir / FOLDER / HELD_OUT

    def write() -> None:
        for clip in clips:
            write_inputs(clip, plan, folder)

    processes.from_first(write)
    return [PromptEntry(f"held-out {clip.name}", _request(clip, plan, folder, base)) for clip in clips]


def shown_clips(plan: Plan, seed: int, wanted: int) -> list[TrainingItem]:
    """The first `wanted` held-out clips that a generation can be given whole; one of each media file comes first."""
    flag = f"--sample_held_out {wanted}"
    if plan.variant.family == "fun_control":
        raise ConfigError(f"{flag}: a Fun-Control model follows a control video, which held-out clips do not bring "
                          "along. Name one in --sample_prompts (--cn control.mp4).")
    if not plan.held_out:
        raise ConfigError(f"{flag}: nothing is held out. Add --validation_count {wanted}, or use --sample_prompts.")
    fitting = [clip for clip in chosen(plan.held_out, seed, None) if not clip.item.voices
               and (clip.item.sound is not None or not _hears(plan))]
    firsts: dict[str, TrainingItem] = {}
    for clip in fitting:
        firsts.setdefault(clip.item.content, clip)
    order = [*firsts.values(), *(clip for clip in fitting if clip is not firsts[clip.item.content])]
    if len(order) < wanted:
        without = len(plan.held_out) - len(fitting)
        note = f" ({without} more have no sound, or several speakers)" if without else ""
        raise ConfigError(f"{flag}: {len(order)} held-out clips can be shown{note}. Ask for at most as many, or hold "
                          "more out (--validation_count).")
    return order[:wanted]


def write_inputs(clip: TrainingItem, plan: Plan, folder: Path) -> None:
    """Write the pictures and the sound that the clip's preview is given."""
    from PIL import Image

    needs = ["frames"] * _sees(plan) + ["sound"] * _hears(plan)
    if not needs:
        return
    media = load_media(clip.item, clip.span, needs)
    picture, last, sound = _paths(clip, folder)
    if media.frames is not None:
        for path, frame in ((picture, media.frames[0]), (last, media.frames[clip.frames - 1])):
            if path is picture or plan.variant.family == "flf2v":
                with atomic_path(path) as temporary:
                    Image.fromarray(frame).save(temporary)
    if media.sound is not None:
        samples = round(clip.frames / as_fraction(clip.item.fps) * AUDIO_SAMPLE_RATE_HZ)
        write_sound(sound, media.sound[None, :samples].astype(np.float32), AUDIO_SAMPLE_RATE_HZ)


def _request(clip: TrainingItem, plan: Plan, folder: Path, base: GenerationRequest) -> GenerationRequest:
    picture, last, sound = _paths(clip, folder)
    values: dict[str, Any] = {name: getattr(base, name) for name in base.model_fields_set}
    values |= {"prompt": clip.item.caption, "video_size": (clip.span.height, clip.span.width),
               "video_length": clip.frames, "fps": clip.item.fps}
    if _sees(plan):
        values["image_path"] = picture
    if plan.variant.family == "flf2v":
        values["end_image_path"] = last
    if _hears(plan):
        values["audio"] = sound
    return from_values(GenerationRequest, values)


def _paths(clip: TrainingItem, folder: Path) -> Sequence[Path]:
    """First picture, last picture, sound."""
    stem = f"{clip.item.key}_{clip.span.start:05d}"
    return [folder / f"{stem}{ending}" for ending in (".png", "_last.png", ".wav")]


def _hears(plan: Plan) -> bool:
    return any(SOUND in condition.features for condition in plan.conditions.values())


def _sees(plan: Plan) -> bool:
    return plan.variant.family != "t2v" or any(REFERENCE in one.features for one in plan.conditions.values())
