"""The assembly hall: from settings to a finished training run. The one file that sees every section and every room."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
import time
from typing import Any

import torch

from common.atomic import write_text
from common.config import to_toml
from common.devices import Meter
from common.dtypes import dtype_name
from common.errors import ConfigError, NetworkFileError
from common.fingerprint import tensors_hash, text_hash
from common.logs import get_logger
from networks.base import network_module
from networks.ema import Ema
from networks.network import Network
from training import preflight
from training.checkpoints import CheckpointPlan, Checkpoints
from training.clips import EpochBatches, digest, sizes_of
from training.config import OptimiserSection, TrainConfig
from training.estimating.compile_choice import settle_compile
from training.estimating.estimate import tell_estimate
from training.estimating.memory_choice import decide
from training.fitting import attach, fp8_of, need_of, tell_need
from training.guard import Guard
from training.job import JobSettings, VideoJob
from training.keeping.raw_weights import RawWeights
from training.keeping.resume import Start, check_change, facts_of, find_start, make_room
from training.keeping.run_record import RecordKeeper
from training.keeping.snapshot import Snapshot
from training.keeping.state_keeper import StateKeeper, StatePlan
from training.keeping.state_settings import StateSection
from training.launch import (
    base_dtype,
    make_accelerator,
    processes_of,
    refuse_differences,
    run_lock,
    set_up_torch,
    together,
    with_seed,
)
from training.looking.preview_plan import prepare_previews
from training.looking.previews import Previews
from training.looking.validation import Validation, ValidationSettings, chosen, default_distance
from training.loop import Loop, LoopSettings
from training.optimizers import build_optimizer, is_schedule_free
from training.outcome import NetworkWriter, averaged
from training.phases import PhaseLines, cuts, epochs_of, heaviest, job_phases, phases_content
from training.preflight import Plan, timestep_settings
from training.processes import Processes
from training.schedules import ScheduleSettings, build_custom_scheduler, build_scheduler, check_schedule, parse_steps
from training.telling.compiled_graphs import GraphReport
from training.telling.reports import duration
from training.telling.timestep_plot import as_text, save_image
from training.telling.watching import run_summary, watchers
from training.timesteps import unread_settings
import wan
from wan.memory.graphs import GraphLog
from wan.memory.swap import spread
from wan.modules.attention_probe import choose_attention
from wan.modules.dit import WanDiT

log = get_logger(__name__)

SETTINGS_FILE = "settings.toml"
PHASES_FILE = "phases.toml"
"""A copy of what --phases names."""


def train(config: TrainConfig) -> Path | None:
    """Run a training to its end and return the final file; None where `--show_timesteps` or `--dry_run` only looked.

    Works in one process and in all processes of an `accelerate launch`. A run that was here before is gone on with
    (`training.keeping.resume`). Raises UserError before the first step for whatever does not fit,
    `training.guard.BrokenStep` when learning breaks down, `training.signals.Interrupted` when it was asked to stop.
    """
    accelerator = make_accelerator(config.logging)
    processes = processes_of(accelerator)
    with together(processes):
        return _train(config, processes, accelerator)


def _train(config: TrainConfig, processes: Processes, accelerator: Any) -> Path | None:
    start: Start = processes.from_first(lambda: find_start(config))
    if start.done and config.noise.show_timesteps is None:
        log.info("%s", start.done)
        return config.saving.output_dir / f"{config.saving.output_name}.safetensors"
    config = with_seed(config, processes, start.seed)
    log.info("settings (a TOML for --config_file):\n%s", to_toml(config))
    set_up_torch(config.speed, _seed(config))
    plan = preflight.check(config)
    preflight.tell(plan)
    if config.noise.show_timesteps is not None:
        show_timesteps(config, plan)
        return None
    with nullcontext() if config.preflight.dry_run else run_lock(config.saving, processes):
        return _run(config, plan, start, processes=processes, accelerator=accelerator)


def _run(config: TrainConfig, plan: Plan, start: Start, *, processes: Processes, accelerator: Any) -> Path | None:
    batches = EpochBatches(plan.clips, _seed(config), processes, config.length.max_data_loader_n_workers,
                           plan.showing.min_frames)
    if plan.phases:
        batches = plan.phases[0].batches(batches)
    schedule = schedule_settings(config.optimiser, loop_settings(config).totals(batches.per_epoch)[0])
    facts = facts_of(config, batches, start.record.run_id, phases_content(plan, batches, timestep_settings(config)))
    if start.state is not None:
        check_change(start, facts, config.state)
    asked = config.speed.compile
    before = start.state if start.is_resumed else None
    done = 0 if before is None else before.step
    config = settle_compile(config, plan, batches, loop_settings(config).totals(batches.per_epoch)[0] - done,
                            was_compiled=before is not None and before.facts.get("compiled", False))
    facts["compiled"] = config.speed.compiles
    config = decide(config, plan, batches)
    if config.preflight.is_wanted:
        estimated = batches
        if plan.phases:
            phase = heaviest(plan.phases, plan.variant.patch)
            estimated = phase.batches(batches)
            log.info("the estimate is of phase %d, which has the largest batches, as if the whole run were it",
                     phase.number)
        tell_estimate(config, plan, estimated, length=loop_settings(config), checkpoints=checkpoint_plan(config),
                      done=done)
        if config.preflight.dry_run:
            return None
    start = processes.from_first(lambda: make_room(start, config))
    if processes.is_main:
        write_text(config.saving.output_dir / SETTINGS_FILE, to_toml(config.for_later_starts(compile=asked)))
        if config.phases.phases is not None:
            write_text(config.saving.output_dir / PHASES_FILE, config.phases.phases.read_text(encoding="utf-8-sig"))
    processes.wait()
    meter, started = Meter(str(processes.device)), time.monotonic()
    run = assemble(config, plan, batches, schedule=schedule, processes=processes, accelerator=accelerator,
                   start=start, facts=facts)
    _tell_length(run.loop, config, batches)
    begin(run, start, config.state)
    run.loop.run()
    log.info("trained %d steps in %s (%s). Use it: generate_video.py --lora_weight \"%s\"", run.loop.state.step,
             duration(time.monotonic() - started), meter.line(), run.final)
    return run.final


def begin(run: "Assembled", start: Start, settings: StateSection) -> None:
    """Put the run where `start` says, loudly."""
    if start.state is None:
        return
    if start.weights_only:
        run.snapshot.take_weights(start.state)
        log.info("the weights of %s (step %d) are taken; step, optimiser and schedule begin anew", start.state.path,
                 start.state.step)
        return
    run.snapshot.restore(start.state, has_new_data=settings.resume_new_data)
    state = run.loop.state
    log.info("GOING ON from %s: step %d of %d, epoch %d, batch %d of it. Optimiser, schedule, random states, order of "
             "the data and loss history are those of the run.", start.state.path.name, state.step,
             run.loop.total_steps, state.epoch, state.batches_in_epoch)


@dataclass(frozen=True)
class Assembled:
    """A run that is ready."""

    loop: Loop
    snapshot: Snapshot
    final: Path
    """Where the result will lie."""


def assemble(config: TrainConfig, plan: Plan, batches: EpochBatches, *, schedule: ScheduleSettings,
             processes: Processes, accelerator: Any, start: Start, facts: Mapping[str, Any]) -> Assembled:
    """Load the base, attach the network, and put everything into a loop that is ready to run."""
    previews = prepare_previews(config, plan, processes)  # before the base, which needs the memory that encoders take
    graphs = GraphReport(GraphLog())
    dit = load_base(config, plan, processes.device, graphs.graphs)
    network = build_network(config, plan, dit)
    if processes.count > 1:
        phases_hash = text_hash(repr([(one.start_step, one.digest()) for one in plan.phases]))
        refuse_differences(processes, {"clips": batches.digest(), "held-out clips": digest(plan.held_out),
                                       "phases": phases_hash, "initial weights": tensors_hash(network.state())})
    job_settings = JobSettings(_seed(config), timestep_settings(config), config.noise.num_timestep_buckets,
                               config.network.scale_weight_norms, plan.showing, plan.regions)
    ema = Ema(network, config.ema.ema_decay) if config.ema.ema_decay else None
    job = VideoJob(dit, network, job_settings, epoch_batches=batches, batches_per_epoch=batches.per_epoch,
                   samples_per_epoch=batches.samples_per_epoch, phases=job_phases(plan.phases, batches), ema=ema)
    optimizer, scheduler = build_learning(config.optimiser, network, schedule)
    settings = replace(loop_settings(config), cuts=cuts(plan.phases))
    total_steps, total_epochs = settings.totals(batches.per_epoch)
    if plan.phases:
        total_epochs = epochs_of(plan.phases, batches, settings.accumulation)
    told = {"max_train_steps": total_steps, "num_epochs": total_epochs, "num_batches_per_epoch": batches.per_epoch,
            "lr_warmup_steps": schedule.warmup_steps, "mixed_precision": dtype_name(dit.dtype),
            "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__name__}", **_size_facts(network)}
    loop = Loop(job, optimizer=optimizer, schedule=scheduler, settings=settings, processes=processes,
                guard=Guard(config.length.explosion_factor))
    loop.total_epochs = total_epochs
    write = NetworkWriter(config, plan, network, optimizer=optimizer, facts=told, ema=ema,
                          started=datetime.fromisoformat(start.record.started))
    checkpoints = Checkpoints(checkpoint_plan(config), write)
    snapshot = Snapshot(loop, network, lambda path: write.raw(path, loop.state),
                        more={} if ema is None else {"ema": ema})

    def as_saved() -> Any:
        return averaged(optimizer, ema)

    loop.callbacks += [checkpoints, *watchers(config, plan, checkpoints.plan, write=write, accelerator=accelerator,
                                              is_first_start=start.state is None and not config.state.force)]
    if ema is not None:
        loop.callbacks.append(RawWeights(checkpoints.plan.final, write.raw))
    if plan.phases:
        loop.callbacks.append(PhaseLines(plan.phases, plan.variant.patch))
    if plan.held_out:
        loop.callbacks.append(build_validation(config, plan, job, total_steps, as_saved=as_saved))
    # Behind all whose memory it saves, and before the previews: what they break costs no state.
    loop.callbacks.append(StateKeeper(state_plan(config), snapshot, facts))
    if previews is not None:
        loop.callbacks.append(Previews(previews, dit=dit, network=network, as_saved=as_saved,
                                       passing=checkpoints.plan.best))
    loop.callbacks.append(graphs)
    loop.callbacks += [
        RecordKeeper(config.saving.output_dir, start.record, graphs=lambda: graphs.facts),
        run_summary(config, plan, checkpoints.plan, callbacks=loop.callbacks, processes=processes.count,
                    trained=sum(parameter.numel() for parameter in job.parameters))]
    return Assembled(loop, snapshot, checkpoints.plan.final)


def build_learning(settings: OptimiserSection, network: Network, schedule: ScheduleSettings) -> tuple[Any, Any]:
    """(optimiser, learning-rate schedule)."""
    optimizer = build_optimizer(settings.optimizer_type, network.parameter_groups(settings.learning_rate),
                                learning_rate=settings.learning_rate, arguments=settings.optimizer_args)
    if is_schedule_free(optimizer):
        optimizer.train()  # type: ignore[attr-defined]
    if settings.lr_scheduler_type:
        return optimizer, build_custom_scheduler(optimizer, settings.lr_scheduler_type, settings.lr_scheduler_args)
    return optimizer, build_scheduler(optimizer, schedule)


def state_plan(config: TrainConfig) -> StatePlan:
    """When states are saved."""
    state = config.state
    return StatePlan(config.saving.output_dir, config.saving.output_name, every_steps=state.save_state_every_n_steps,
                     every_minutes=state.save_state_every_n_minutes, with_checkpoints=state.save_state,
                     keep=state.save_last_n_states)


def build_validation(config: TrainConfig, plan: Plan, job: VideoJob, total_steps: int, *,
                     as_saved: Callable[[], Any]) -> Validation:
    """The callback that measures the held-out clips."""
    given = config.validation
    settings = ValidationSettings(given.validation_seed, tuple(given.validation_sigmas),
                                  given.validate_every_n_steps or default_distance(total_steps))
    clips = chosen(plan.held_out, given.validation_seed, given.max_validation_steps)
    return Validation(job, clips, settings, as_saved=as_saved)


def load_base(config: TrainConfig, plan: Plan, device: torch.device, graphs: GraphLog | None = None) -> WanDiT:
    """The frozen DiT on `device`, with base weights merged, stored and run as the settings say."""
    speed = config.speed
    dtype = base_dtype(speed, device)
    fp8 = fp8_of(speed, is_stored_in_fp8=plan.is_stored_in_fp8)
    if plan.is_stored_in_fp8 and not speed.uses_fp8:
        log.info("the base's file is float8 and stays so (half the memory of bfloat16; the numbers are the same).")
    variant = plan.variant
    attention = choose_attention(speed.attention, device, dtype, heads=variant.heads, head_dim=variant.head_dim,
                                 trains=True)
    log.info("attention: %s", attention.words)
    started = time.monotonic()
    tell_need(need_of(config, plan, dtype, fp8))
    dit = wan.load_dit(config.data.dit, dtype=dtype, device=device, transform=plan.merge, fp8=fp8,
                       blocks_on_cpu=spread(config.small_card.blocks_to_swap, plan.variant.layers))
    dit.set_attention(attention.name)
    attach(config, dit, graphs)
    log.info("base %s: %s model, %d wide, %d blocks, %s%s on %s, read in %s", config.data.dit.name,
             plan.variant.family, plan.variant.dim, plan.variant.layers, dtype_name(dtype),
             " with float8 block weights" if fp8 else "", device, duration(time.monotonic() - started))
    return dit


def build_network(config: TrainConfig, plan: Plan, dit: WanDiT) -> Network:
    """The network on the DiT, from `--network_weights` where they are given, attached and in training mode."""
    settings = config.network
    network: Network = network_module(settings.network_module).create_network(
        dit, dim=settings.network_dim, alpha=settings.network_alpha, dropout=settings.network_dropout,
        args=plan.arguments, conditions=plan.conditions,
        sizes_from=plan.start if settings.dim_from_weights else None, seed=_seed(config))
    if plan.start is not None:
        report = network.load(plan.start)
        if report.unused:
            raise NetworkFileError(f"--network_weights {plan.start.path}: {len(report.unused)} modules are not in this "
                                   f"network and would be lost ({', '.join(report.unused[:4])}). Widen the patterns of "
                                   "--network_args, or use --dim_from_weights.")
        log.info("went on from %s", report.text())
    network.to(dit.device).attach().train()
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    facts = _size_facts(network)
    rates = [f"{one['lr']:g} ({one['name']})" for one in network.parameter_groups(config.optimiser.learning_rate)]
    kinds = " and ".join(sorted({layer.kind for layer in network.layers.values()})) or "no"
    log.info("trained: %.2f M parameters in float32; %s layers, rank %s, alpha %s, learning rate %s", count / 1e6,
             kinds, facts["network_dim"], facts["network_alpha"], ", ".join(rates))
    if "learning_rate" not in config.optimiser.model_fields_set:
        log.warning("--learning_rate is not set; %g is musubi-tuner's default and small for LoRA (1e-4 is usual)",
                    config.optimiser.learning_rate)
    return network


def loop_settings(config: TrainConfig) -> LoopSettings:
    """Length and portions of the run."""
    length = config.length
    return LoopSettings(steps=length.max_train_steps, epochs=length.max_train_epochs,
                        accumulation=length.gradient_accumulation_steps, max_grad_norm=length.max_grad_norm)


def schedule_settings(settings: OptimiserSection, total_steps: int) -> ScheduleSettings:
    """The learning rate's course over `total_steps`. ConfigError when it does not fit into them."""
    schedule = ScheduleSettings(
        name=settings.lr_scheduler, total_steps=total_steps,
        warmup_steps=parse_steps(settings.lr_warmup_steps, total_steps),
        decay_steps=parse_steps(settings.lr_decay_steps, total_steps), num_cycles=settings.lr_scheduler_num_cycles,
        power=settings.lr_scheduler_power, timescale=settings.lr_scheduler_timescale,
        min_lr_ratio=settings.lr_scheduler_min_lr_ratio, learning_rate=settings.learning_rate,
        step_rules=_step_rules(settings))
    if not settings.lr_scheduler_type:
        check_schedule(schedule)
    return schedule


def _step_rules(settings: OptimiserSection) -> str:
    """`step_rules` of piecewise_constant, the one argument that a named schedule takes."""
    if settings.lr_scheduler_type:
        return ""
    given = dict(pair.split("=", 1) for pair in settings.lr_scheduler_args)
    unknown = set(given) - {"step_rules"}
    if unknown:
        raise ConfigError(f"--lr_scheduler_args {', '.join(sorted(unknown))}: only step_rules is read beside "
                          "--lr_scheduler; other arguments belong to --lr_scheduler_type.")
    return given.get("step_rules", "")


def checkpoint_plan(config: TrainConfig) -> CheckpointPlan:
    """Where and when checkpoints are written."""
    saving = config.saving
    return CheckpointPlan(saving.output_dir, saving.output_name, every_steps=saving.save_every_n_steps,
                          every_epochs=saving.save_every_n_epochs, keep_steps=saving.save_last_n_steps,
                          keep_epochs=saving.save_last_n_epochs, at_first=saving.save_at_first)


def show_timesteps(config: TrainConfig, plan: Plan) -> None:
    """Show how often each noise level will be drawn at the largest size of the dataset."""
    width, height, _ = sizes_of(plan.clips)[0]
    size = (height // plan.variant.vae_stride[1], width // plan.variant.vae_stride[2])
    if config.noise.show_timesteps == "console":
        log.info("%s", as_text(timestep_settings(config), size))
        return
    path = config.saving.output_dir / f"{config.saving.output_name}-timesteps.png"
    save_image(timestep_settings(config), size, path)
    log.info("wrote %s", path)


def _tell_length(loop: Loop, config: TrainConfig, batches: EpochBatches) -> None:
    idle = unread_settings(timestep_settings(config))
    if idle:
        log.warning("--%s has no effect with --timestep_sampling %s", ", --".join(idle), config.noise.timestep_sampling)
    accumulation, processes = config.length.gradient_accumulation_steps, batches.processes.count
    first = "in the first phase: " if config.phases.phases else ""
    log.info("%sclips: %d; an epoch: %d samples, batches of each process: %d; steps: %d, epochs: %d, batches a step: "
             "%d (accumulation %d x processes %d)", first, len(batches.clips), batches.samples_in(1), batches.per_epoch,
             loop.total_steps, loop.total_epochs, accumulation * processes, accumulation, processes)


def _size_facts(network: Network) -> dict[str, Any]:
    """Rank and alpha for kohya's metadata; "Dynamic" where layers differ, as kohya writes it."""
    ranks = {layer.rank for layer in network.layers.values()}
    alphas = {float(layer.alpha) for layer in network.layers.values()}
    return {"network_dim": ranks.pop() if len(ranks) == 1 else "Dynamic",
            "network_alpha": alphas.pop() if len(alphas) == 1 else "Dynamic"}


def _seed(config: TrainConfig) -> int:
    assert config.length.seed is not None
    return config.length.seed
