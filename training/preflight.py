"""Everything that can be wrong with a run, looked for before any weights are loaded, and told at once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from common.devices import pick_device
from common.errors import ConfigError, NetworkFileError, UserError, raise_all
from common.logs import get_logger
from common.timebase import VAE_TEMPORAL_STRIDE
from dataset.open import Dataset
from dataset.plan import TrainingItem
from dataset.report import describe
from dataset.store import CacheStore
from networks.attach import refuse_sizes_beside
from networks.base import network_module, requested_conditions, split_network_args
from networks.condition_weights import load_conditions, recorded_conditions
from networks.formats import LoraFile, read_lora
from networks.layer import HOW_TO_TRAIN
from networks.merge import LoraMerge, merge_transform
from networks.names import spellings
from training.budget import within_budget
from training.cached_sound import refuse_other_sound, sound_options
from training.checkpoints import check_writable
from training.clips import find_clips, find_dataset, read_one, require_null_text
from training.config import NetworkSection, TrainConfig
from training.launch import base_dtype
from training.looking.held_out import hold_out, listed_names
from training.optimizers import optimizer_class, parse_arguments
from training.phase_table import PhaseEntry, read_phases
from training.phases import Phase, plan_phases
from training.phases import describe as describe_phases
from training.regions import RegionWeights, masked_clips, needed_masks, region_weights
from training.schedules import SCHEDULES, ScheduleSettings, check_schedule
from training.showing import SOUND, Showing, resolve
from training.timesteps import TimestepSettings, check_settings
from wan.conditions.base import Condition
from wan.conditions.registry import build_condition, find_condition, refuse_mixture
from wan.memory.fp8_model import require_fp8_compute
from wan.modules.attention import check_backend
from wan.modules.dit import WanDiT
from wan.variants import Task, Variant, check_task, find_task
from wan.weights.dit import inspect_dit, read_parameters

log = get_logger(__name__)

_SHOWN = 20
"""Names in one line."""


@dataclass(frozen=True)
class Plan:
    """What a run will do, all inputs checked."""

    task: Task
    variant: Variant
    arguments: Mapping[str, str]
    """`--network_args`."""
    conditions: Mapping[str, Condition]
    """Fresh conditions, on the CPU."""
    dataset: Dataset
    clips: Sequence[TrainingItem]
    """Those that are trained on."""
    held_out: Sequence[TrainingItem]
    """Those that are only measured on."""
    merge: LoraMerge | None
    """Transform that merges `--base_weights` while the base is read."""
    start: LoraFile | None
    """`--network_weights`."""
    is_stored_in_fp8: bool
    """Whether the base's file holds its block weights as float8."""
    showing: Showing
    """Given frames, dropouts and lengths."""
    regions: RegionWeights | None = None
    """Weights of the loss in face and mouth."""
    phases: tuple[Phase, ...] = ()
    """Where `--phases` is given: what takes the place of `clips` and `showing` from which step on."""


@dataclass
class _Problems:
    found: list[UserError] = field(default_factory=list)

    @contextmanager
    def collected(self, prefix: str = "") -> Iterator[None]:
        """Note a UserError, with `prefix` before its text, and go on behind the block."""
        try:
            yield
        except UserError as error:
            self.found.append(type(error)(f"{prefix}{error}") if prefix else error)

    def raise_found(self) -> None:
        """Raise what was noted; a single error as it is."""
        if len(self.found) == 1:
            raise self.found[0]
        raise_all([str(error) for error in self.found], ConfigError, "training cannot start")


def check(config: TrainConfig) -> Plan:
    """Look at settings, weights (their headers), network files, dataset and caches.

    Raises a UserError with everything that was found; what can only be known after something else is right, such as
    the caches of a dataset that cannot be read, is told after that.
    """
    problems = _Problems()
    _check_settings(config, problems)
    arguments: dict[str, str] = {}
    wanted: dict[str, dict[str, str]] = {}
    start = merge = model = dataset = None
    table: tuple[PhaseEntry, ...] = ()
    is_stored_in_fp8 = False
    showing = Showing()
    with problems.collected():
        arguments = split_network_args(config.network.network_args)
        start = _read_start(config.network)
        wanted = _wanted_conditions(arguments, start)
        showing = resolve(config.showing, {name: find_condition(name) for name in wanted})
    with problems.collected():
        model, is_stored_in_fp8 = _look_at_base(config)
    with problems.collected():
        dataset = find_dataset(config.data, model.variant.spatial_multiple if model else 16)
    with problems.collected():
        table = read_phases(config, [one.name for one in dataset.config.sections] if dataset else None)
    if model is not None:
        with problems.collected():
            network_module(config.network.network_module).check_arguments(
                model, arguments, config.network.network_dropout)
        with problems.collected():
            merge = merge_transform(config.data.merges, list(model.state_dict())) if config.data.merges else None
        with problems.collected():
            _check_start(start, config.network, arguments, model)
        problems.found += [ConfigError(text) for text in config.small_card.problems_with(
            model.variant.layers, config.speed.activations)]
    problems.raise_found()
    assert model is not None and dataset is not None
    task = find_task(config.data.task)
    features = [feature for name in wanted for feature in find_condition(name).features]
    if not wanted and (rate := next((name for name in ("condition_lr", "patch_lr") if name in arguments), None)):
        raise ConfigError(f"network_args: {rate} is a learning rate of conditions, and this run trains none. "
                          "Add conditions=omniavatar_add, or leave it out.")
    features += needed_masks(config.regions, dataset)
    clips = whole = find_clips(dataset, task, features, require_sources=config.data.require_sources)
    if showing.max_tokens is not None:
        clips = within_budget(clips, showing.max_tokens, model.variant.patch, needs_end=task.family == "flf2v")
    conditions = _build_conditions(wanted, clips, model.variant)
    check_showing(showing, dataset, clips, conditions)
    refuse_other_sound(conditions, clips, start, config.data.dataset_config)
    validation = config.validation
    clips, held_out = hold_out(clips, share=validation.validation_split, count=validation.validation_count,
                               seed=validation.validation_seed, names=listed_names(validation.validation_items))
    hears = any(SOUND in condition.features for condition in conditions.values())
    if held_out and config.early_stopping.early_stopping_metric == "audio_gap" and not hears:
        raise ConfigError("--early_stopping_metric audio_gap needs a condition that hears, and this run trains none: "
                          "every gap would be missing. Use held_out_loss, or add one to --network_args.")
    if start is not None:
        start = start.relative_to(lambda name: read_parameters(config.data.dit, [name])[name])
        load_conditions(conditions, start.conditions, start.path)
    plan = Plan(task=task, variant=model.variant, arguments=arguments, conditions=conditions, dataset=dataset,
                clips=clips, held_out=held_out, merge=merge, start=start, is_stored_in_fp8=is_stored_in_fp8,
                showing=showing, regions=region_weights(config.regions))
    return with_phases(plan, table, whole, timestep_settings(config))


def with_phases(plan: Plan, table: Sequence[PhaseEntry], whole: Sequence[TrainingItem], timesteps: TimestepSettings
                ) -> Plan:
    """The plan with the phases of `table`, each looked at as the run itself is; `whole` as in `plan_phases`."""
    phases, problems = plan_phases(table, plan, whole, timesteps), _Problems()
    for phase in phases:
        with problems.collected(f"phase {phase.number}: "):
            _refuse_cut_ends(phase.showing.min_frames is not None, plan.task)
        with problems.collected(f"phase {phase.number}: "):
            check_showing(phase.showing, plan.dataset, phase.clips, plan.conditions)
    problems.raise_found()
    return replace(plan, phases=phases)


def _check_settings(config: TrainConfig, problems: _Problems) -> None:
    """What settings alone tell."""
    settings = config.optimiser
    with problems.collected():
        check_writable(config.saving.output_dir)
    with problems.collected():
        check_backend(config.speed.attention)
    with problems.collected():
        if config.speed.fp8_fast:
            device = torch.device(pick_device())
            require_fp8_compute(device, base_dtype(config.speed, device))
    with problems.collected():
        check_settings(timestep_settings(config))
    with problems.collected():
        parse_arguments(settings.optimizer_args, optimizer_class(settings.optimizer_type), "optimizer_args",
                        taken=("lr",))
    with problems.collected():
        if config.ema.ema_decay and settings.optimizer_type.lower().endswith("schedulefree"):
            raise ConfigError(f"--ema_decay {config.ema.ema_decay:g}: {settings.optimizer_type} averages its weights "
                              "itself. Leave one of the two out.")
    with problems.collected():
        _refuse_cut_ends(config.showing.random_length, find_task(config.data.task))
    with problems.collected():
        if settings.lr_scheduler not in SCHEDULES:
            check_schedule(ScheduleSettings(name=settings.lr_scheduler))


def _refuse_cut_ends(has_random_length: bool, task: Task) -> None:
    if has_random_length and task.family == "flf2v":
        raise ConfigError(f"--random_length cuts the end of a clip, and --task {task.name} is given its last frame. "
                          "Leave it out.")


def check_showing(showing: Showing, dataset: Dataset, clips: Sequence[TrainingItem],
                  conditions: Mapping[str, Condition]) -> None:
    """Refuse what the caches and clips have no room for: null texts, given frames; all at once."""
    problems = _Problems()
    if showing.needs_null_text:
        with problems.collected():
            require_null_text(dataset, clips)
    shortest = min(showing.prefix_frames)
    if any(condition.starts_from_picture for condition in conditions.values()) and showing.prefix_dropout < 1:
        drawn = showing.min_frames and max(showing.min_frames, VAE_TEMPORAL_STRIDE + 1)  # of a picture none is given
        short = [clip.name for clip in clips if 1 < min(clip.frames, drawn or clip.frames) <= shortest]
        if short:
            more = f" and {len(short) - _SHOWN} more" if len(short) > _SHOWN else ""
            problems.found.append(ConfigError(
                f"--prefix_frames {' '.join(map(str, showing.prefix_frames))}: {', '.join(short[:_SHOWN])}{more} would "
                "have no frame left to learn. Give a shorter length too, such as 1."))
    problems.raise_found()


def tell(plan: Plan) -> None:
    """Say what will be trained on, in a few lines."""
    log.info("%s", describe(plan.dataset))
    note = CacheStore(plan.dataset).musubi_note()
    if note is not None:
        log.info("%s", note)
    if plan.held_out:
        names = list(dict.fromkeys(clip.item.name for clip in plan.held_out))
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        log.info("held out, never trained on: %d media files (clips: %d): %s%s", len(names), len(plan.held_out),
                 ", ".join(names[:_SHOWN]), more)
    if plan.phases:
        log.info("%s", describe_phases(plan.phases, plan.variant.patch))
    if plan.merge is not None:
        for report in plan.merge.reports():
            log.info("merged into the base: %s", report.text())
    if plan.regions is not None:
        counts = ", ".join(f"{region}: {count}" for region, count in masked_clips(plan.clips).items())
        log.info("region weights: 1 + %g x face + %g x lip%s; clips with masks, of %d: %s", plan.regions.face,
                 plan.regions.lip, "" if plan.regions.mixture is None else
                 ", whole picture, face and lip alone for shares of {:g}, {:g}, {:g}".format(*plan.regions.mixture),
                 len(plan.clips), counts)
    for name, condition in plan.conditions.items():
        count = sum(parameter.numel() for parameter in condition.parameters())
        log.info("condition %s: %.1f M parameters, reads %s", name, count / 1e6, ", ".join(condition.features))


def timestep_settings(config: TrainConfig) -> TimestepSettings:
    """The noise section as the rules read it."""
    noise = config.noise
    return TimestepSettings(
        timestep_sampling=noise.timestep_sampling, discrete_flow_shift=noise.discrete_flow_shift,
        sigmoid_scale=noise.sigmoid_scale, weighting_scheme=noise.weighting_scheme, logit_mean=noise.logit_mean,
        logit_std=noise.logit_std, mode_scale=noise.mode_scale, min_timestep=float(noise.min_timestep or 0),
        max_timestep=1000.0 if noise.max_timestep is None else float(noise.max_timestep),
        preserve_distribution_shape=noise.preserve_distribution_shape)


def _look_at_base(config: TrainConfig) -> tuple[WanDiT, bool]:
    """The base on the meta device, by the names and shapes in its file, and whether the file is float8."""
    found = inspect_dit(config.data.dit)
    check_task(config.data.task, found.variant, config.data.dit)
    return found.empty(), found.is_stored_in_fp8


def _read_start(settings: NetworkSection) -> LoraFile | None:
    if settings.network_weights is None:
        return None
    file = read_lora(_existing(settings.network_weights))
    if file.others:
        raise NetworkFileError(f"--network_weights {file.path}: {len(file.others)} keys are no LoRA and would be lost "
                               f"({', '.join(file.others[:4])}).")
    return file


def _check_start(file: LoraFile | None, settings: NetworkSection, arguments: Mapping[str, str], model: WanDiT) -> None:
    """`--network_weights` must fit the base, the kind of network and its ranks; what it would lose is an error."""
    if settings.dim_from_weights:
        refuse_sizes_beside(arguments)
    if file is None:
        return
    paths = {name: path for path, module in model.named_modules() if isinstance(module, torch.nn.Linear)
             for name in spellings(path)}
    lost = [name for name, entry in file.entries.items() if name not in paths or not entry.method]
    if lost:
        raise NetworkFileError(f"--network_weights {file.path}: {len(lost)} modules are not in this model and would be "
                               f"lost ({', '.join(lost[:4])}). The file belongs to another kind of model.")
    planned = network_module(settings.network_module).plan(model, arguments, settings.network_dim)
    for name, entry in file.entries.items():
        if entry.kind != planned.kind:
            raise NetworkFileError(f"--network_weights {file.path}: {entry.kind} at '{name}', and this network trains "
                                   f"{planned.kind}. {HOW_TO_TRAIN.get(entry.kind, 'It can be merged only.')}")
        if entry.direct:
            raise NetworkFileError(f"--network_weights {file.path}: changes weights or biases directly at '{name}' ("
                                   f"{', '.join(entry.direct)}), which cannot be trained on and would be lost. Merge "
                                   "it with --base_weights.")
        own = planned.ranks.get(paths[name], entry.rank)
        if entry.rank and entry.rank != own and not settings.dim_from_weights:
            raise NetworkFileError(f"--network_weights {file.path}: rank {entry.rank} at '{name}', the network has "
                                   f"{own}. Set --network_dim, or use --dim_from_weights.")


def _existing(path: Path) -> Path:
    if not path.exists():
        raise NetworkFileError(f"--network_weights {path}: no such file.")
    return path


def _wanted_conditions(arguments: Mapping[str, str], start: LoraFile | None) -> dict[str, dict[str, str]]:
    """{condition: settings}: those asked for, with settings of the start file below the user's, and those in it."""
    wanted = requested_conditions(arguments)
    recorded = recorded_conditions(start.metadata) if start is not None else {}
    for name in (*recorded, *wanted):
        find_condition(name)
        wanted[name] = {**recorded.get(name, {}), **wanted.get(name, {})}
    refuse_mixture(wanted)
    return wanted


def _build_conditions(wanted: Mapping[str, Mapping[str, str]], clips: Sequence[TrainingItem], variant: Variant
                      ) -> dict[str, Condition]:
    """Fresh conditions; sizes that nobody set are those of the cached features."""
    if not wanted:
        return {}
    fullest = max(clips, key=lambda clip: sum(entry.path is not None for entry in clip.entries))
    features, told = read_one(fullest).features.features, {"audio": sound_options(clips)}
    return {name: build_condition(name, {**find_condition(name).settings_from_features(features, told), **settings},
                                  variant) for name, settings in wanted.items()}
