"""What previews show: lines of a prompt file and held-out clips, checked before training and encoded before the DiT
is loaded, so that umT5 and the base are never in memory together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.config import from_values
from common.devices import free_memory
from common.dtypes import dtype_name
from common.errors import ConfigError, UserError, raise_all
from common.seeding import derive_seed
from inference.adapters import adapters_in_training
from inference.inputs import Prepared
from inference.pipeline import Pipeline, load_pipeline
from inference.plan import Plan as GenerationPlan
from inference.prompts import PromptEntry, read_prompts
from inference.request import GenerationRequest
from training.config import TrainConfig
from training.launch import base_dtype
from training.looking.preview_clips import held_out_prompts
from training.looking.preview_files import FOLDER
from training.outcome import origin_of
from training.preflight import Plan
from training.processes import Processes


@dataclass(frozen=True)
class Piece:
    """One thing to show at every round."""

    number: int
    where: str
    """Line of the prompt file, or name of the held-out clip."""
    plan: GenerationPlan
    seed_from: str
    """Who chose the seed, in words."""


@dataclass(frozen=True)
class Schedule:
    """When previews are made; they are made at the end in any case."""

    every_steps: int | None = None
    every_epochs: int | None = None
    at_first: bool = False

    def is_due(self, step: int) -> bool:
        """Whether step counts alone ask for them after `step`."""
        return self.at_first if step == 0 else bool(self.every_steps) and step % (self.every_steps or 1) == 0

    @property
    def words(self) -> str:
        """In words."""
        parts = ["before the first step"] if self.at_first else []
        parts += [f"every {self.every_steps} steps"] if self.every_steps else []
        parts += [f"every {self.every_epochs} epochs"] if self.every_epochs else []
        return ", ".join([*parts, "at the end"])


@dataclass(frozen=True)
class PreparedPreviews:
    """All that is to be shown; this process's part of it encoded."""

    pipeline: Pipeline
    pieces: Sequence[Piece]
    prepared: Mapping[int, Prepared]
    """By number; those of this process."""
    schedule: Schedule
    folder: Path
    name: str
    """`--output_name`."""
    base_weights: Sequence[tuple[Path, float]] = ()
    """LoRA files that are merged into the base, with their strengths; a generation needs them too."""


def prepare_previews(config: TrainConfig, plan: Plan, processes: Processes) -> PreparedPreviews | None:
    """Check everything that previews need, and encode this process's texts, pictures and sounds; None where none is
    asked for.

    The encoders are freed, torch's random state is left as it was. Raises ConfigError with all that is wrong.
    """
    settings, saving = config.previews, config.saving
    if not settings.is_wanted:
        return None
    device = processes.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        pipeline, pieces = plan_previews(config, plan, processes)
        own = pieces[processes.rank::processes.count]
        outcomes = pipeline.prepare_each([piece.plan for piece in own], free=True)
        if own and device.type != "cpu":
            pipeline.models.get("vae").to("cpu")
            free_memory()
    raise_all([f"{piece.where}: {outcome}" for piece, outcome in zip(own, outcomes, strict=True)
               if isinstance(outcome, UserError)], ConfigError, "previews")
    prepared = {piece.number: outcome for piece, outcome in zip(own, outcomes, strict=True)
                if isinstance(outcome, Prepared)}
    schedule = Schedule(settings.sample_every_n_steps, settings.sample_every_n_epochs, settings.sample_at_first)
    return PreparedPreviews(pipeline, pieces, prepared, schedule, saving.output_dir / FOLDER, saving.output_name,
                            config.data.merges)


def plan_previews(config: TrainConfig, plan: Plan, processes: Processes) -> tuple[Pipeline, list[Piece]]:
    """A pipeline that waits for the trainer's DiT, and the plan of every preview, the same on every process."""
    settings = config.previews
    base = base_request(config, plan, processes.device)
    origin = origin_of(config, plan)
    adapters = adapters_in_training(config.saving.output_dir / f"{config.saving.output_name}.safetensors",
                                    origin.text(), plan.conditions)
    entries: list[PromptEntry] = []
    if settings.sample_prompts is not None:
        entries += read_prompts(settings.sample_prompts, base, "--sample_prompts")
    if settings.sample_held_out:
        entries += held_out_prompts(config, plan, base, processes)
    requests = [entry.request for entry in entries if entry.request is not None]
    shown = next((request for request in requests if request.audio is not None), requests[0] if requests else base)
    try:
        pipeline = load_pipeline(shown, adapters, conditions=plan.conditions)
    except ConfigError as error:
        raise ConfigError(f"previews (--sample_prompts, --sample_held_out): {error}") from error
    problems, pieces = [], []
    assert config.length.seed is not None
    for number, entry in enumerate(entries):
        try:
            if entry.request is None:
                raise ConfigError(entry.problem)
            request, seed_from = with_seed(entry.request, config.length.seed, number)
            pieces.append(Piece(number, entry.where, pipeline.plan(request), seed_from))
        except UserError as error:
            problems.append(f"{entry.where}: {error}")
    raise_all(problems, ConfigError, "previews")
    return pipeline, pieces


def base_request(config: TrainConfig, plan: Plan, device: torch.device) -> GenerationRequest:
    """The settings of generate_video.py that stand for the run's own; all else is that script's default."""
    settings, speed = config.previews, config.speed
    values: dict[str, Any] = {
        "task": plan.task.name, "dit": config.data.dit, "device": str(device),
        "dit_dtype": dtype_name(base_dtype(speed, device)), "attn_mode": speed.attention,
        "fp8_scaled": speed.uses_fp8, "blocks_to_swap": config.small_card.blocks_to_swap,
        "infer_steps": settings.sample_infer_steps}
    for name in ("vae", "t5", "tokenizer", "clip", "wav2vec", "vae_dtype", "t5_dtype", "clip_dtype", "fp8_t5",
                 "text_encoder_cpu"):
        values[name] = getattr(settings, name)
    return from_values(GenerationRequest, {name: value for name, value in values.items() if value is not None})


def with_seed(request: GenerationRequest, seed: int, number: int) -> tuple[GenerationRequest, str]:
    """The request with a seed, and where that comes from: its line, or the run's seed and the prompt's number."""
    if request.seed is not None:
        return request, "its line"
    own = derive_seed(seed, "preview", number) % 2**32
    return request.model_copy(update={"seed": own}), f"--seed {seed} and prompt number {number}"
