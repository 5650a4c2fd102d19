"""What a finished network is saved as: weights, and metadata that say what made them."""

from collections import Counter
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.dtypes import parse_dtype
from dataset.items import PICTURE_MODE
from networks.ema import Ema
from networks.files import save_network
from networks.metadata import ARCHITECTURE, ModelSpec, Origin, training_metadata
from networks.network import Network
from training.callbacks import RunState
from training.clips import dataset_facts, sizes_of
from training.config import SavingSection, TrainConfig
from training.optimizers import is_schedule_free
from training.preflight import Plan, timestep_settings
from training.showing import SOUND
from wan.encoders.specs import NULL


class NetworkWriter:
    """Writes the network as it is now: called (path, state) as it is to be used, `raw` as it is trained."""

    def __init__(self, config: TrainConfig, plan: Plan, network: Network, *, optimizer: Any, facts: dict[str, Any],
                 started: datetime, ema: Ema | None = None) -> None:
        """`facts` are added to the `ss_*` metadata. `started` is when the run began, at its first start."""
        self._config, self._plan, self._network, self._optimizer, self._ema = config, plan, network, optimizer, ema
        self._facts = _facts(config, plan) | facts | {"session_id": int(started.timestamp()),
                                                      "training_started_at": started.timestamp()}

    def __call__(self, path: Path, state: RunState) -> None:
        """In `--save_precision`, averaged where there is an average."""
        precision = self._config.saving.save_precision
        with averaged(self._optimizer, self._ema):
            self._write(path, state, parse_dtype(precision) if precision else None, self._ema)

    def raw(self, path: Path, state: RunState) -> None:
        """In float32, exactly the weights that the next step begins with."""
        self._write(path, state, None, None)

    def _write(self, path: Path, state: RunState, dtype: torch.dtype | None, ema: Ema | None) -> None:
        origin = replace(origin_of(self._config, self._plan), ema_decay=None if ema is None else ema.decay)
        saving, now = self._config.saving, datetime.now(UTC)
        metadata = training_metadata(
            self._facts | {"training_finished_at": now.timestamp(), "epoch": state.epoch, "steps": state.step},
            _spec(saving, self._config, self._plan), origin, minimal=saving.no_metadata, now=now)
        save_network(path, self._network.state(dtype), metadata)


def averaged(optimizer: Any, ema: Ema | None = None) -> Any:
    """Context in which the network has the weights that are saved: those of `ema`, or the average of a schedule-free
    optimiser, else its own. Behind it the trained weights are back, bit for bit.
    """
    if ema is not None:
        assert not is_schedule_free(optimizer), "two averages of one run"
        return ema.swapped()
    return _EvalMode(optimizer) if is_schedule_free(optimizer) else nullcontext()


class _EvalMode:
    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._trained: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> None:
        self._trained = [(weight, weight.detach().clone()) for group in self._optimizer.param_groups
                         for weight in group["params"]]
        self._optimizer.eval()

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        self._optimizer.train()
        # It computes the trained weights back from the averages, which rounds; looking must not change a run.
        for weight, before in self._trained:
            weight.copy_(before)
        self._trained = []


def _spec(saving: SavingSection, config: TrainConfig, plan: Plan) -> ModelSpec:
    width, height, _ = sizes_of(plan.clips)[0]
    if saving.metadata_reso is not None:
        numbers = [int(part) for part in saving.metadata_reso.replace("x", ",").split(",")]
        width, height = numbers[0], numbers[-1]
    noise = [phase.timesteps for phase in plan.phases] or [timestep_settings(config)]
    times = min(one.min_timestep for one in noise), max(one.max_timestep for one in noise)
    return ModelSpec(title=saving.metadata_title or saving.output_name, resolution=(width, height),
                     author=saving.metadata_author, description=saving.metadata_description,
                     license=saving.metadata_license, tags=saving.metadata_tags,
                     timestep_range=times if times != (0.0, 1000.0) else None,
                     architecture=saving.metadata_arch or ARCHITECTURE)


def origin_of(config: TrainConfig, plan: Plan) -> Origin:
    """What a file of this run tells a generation of itself."""
    variant = asdict(plan.variant) | {"family": plan.variant.family}
    return Origin(task=config.data.task, variant=variant,
                  conditions={name: condition.settings_text() for name, condition in plan.conditions.items()},
                  encoders=_encoders(plan), fps=usual_fps(plan), picture_mode=PICTURE_MODE, showing=_showing(plan))


def _showing(plan: Plan) -> dict[str, Any]:
    """Settings, phases, weights of the loss in face and mouth, and what stood for a dropped caption, and for dropped
    sound by condition."""
    facts, shown = plan.showing.facts(), [plan.showing, *(phase.showing for phase in plan.phases)]
    if plan.phases:
        facts["phases"] = [phase.facts() for phase in plan.phases]
    if plan.regions is not None:
        facts["regions"] = {name: value for name, value in asdict(plan.regions).items() if value is not None}
    if any(one.needs_null_text for one in shown):
        facts["null_text"] = _encoders(plan)["text"]["options"].get(NULL, "")
    if any(one.needs_null_sound for one in shown):
        facts["null_audio"] = {name: condition.settings.null for name, condition in plan.conditions.items()
                               if SOUND in condition.features}
    return facts


def usual_fps(plan: Plan) -> float:
    """The rate of most clips; of those with sound where a condition hears. Pictures have none to tell of."""
    moving = [clip.item for clip in plan.clips if clip.item.kind == "video"] or [clip.item for clip in plan.clips]
    heard = [item for item in moving if item.sound is not None and plan.conditions]
    return Counter(item.fps for item in heard or moving).most_common(1)[0][0]


def _encoders(plan: Plan) -> dict[str, Any]:
    """Fingerprint and options of the encoder of each feature, from the headers of one clip's entries."""
    from common.tensorfile import read_header

    found = {}
    for entry in plan.clips[0].entries:
        path = entry.path or entry.like
        if path is not None:
            header, _ = read_header(path)
            options = {key.removeprefix("option."): value for key, value in header.items() if key.startswith("option.")}
            found[entry.spec.name] = {"fingerprint": header.get("encoder", ""), "options": options}
    return found


def _facts(config: TrainConfig, plan: Plan) -> dict[str, Any]:
    """The run's settings under kohya's names."""
    network, optimiser, noise, speed, length = (config.network, config.optimiser, config.noise, config.speed,
                                                config.length)
    noise_facts = {name: getattr(noise, name) for name in (
        "weighting_scheme", "logit_mean", "logit_std", "mode_scale", "timestep_sampling", "sigmoid_scale",
        "discrete_flow_shift", "min_timestep", "max_timestep")}
    return noise_facts | {
        "output_name": config.saving.output_name, "training_comment": config.saving.training_comment,
        "base_model_version": "wan", "network_module": network.network_module,
        "network_args": dict(plan.arguments), "network_dropout": network.network_dropout,
        "learning_rate": optimiser.learning_rate, "lr_scheduler": optimiser.lr_scheduler,
        "max_grad_norm": length.max_grad_norm, "seed": length.seed,
        "gradient_accumulation_steps": length.gradient_accumulation_steps,
        "gradient_checkpointing": speed.activations == "full" or config.small_card.gradient_checkpointing_cpu_offload,
        "fp8_base": speed.uses_fp8,
        "gradient_checkpointing_cpu_offload": config.small_card.gradient_checkpointing_cpu_offload,
        "num_train_items": len(plan.clips), "datasets": dataset_facts(plan.dataset),
        "sd_model_name": config.data.dit.name,
    }
