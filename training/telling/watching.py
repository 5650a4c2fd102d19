"""Puts together what looks at a run: log, progress, pictures, best checkpoint, early stopping, and the final page."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.callbacks import Callback, Outcome, RunState
from training.checkpoints import CheckpointPlan
from training.config import TrainConfig
from training.keeping.best import BestCheckpoint, Metric
from training.looking.early_stopping import EarlyStopping, Patience
from training.preflight import Plan, timestep_settings
from training.showing import SOUND
from training.telling.compiled_graphs import GraphReport
from training.telling.loss_plot import LossHistory
from training.telling.noise_levels import BINS, NoiseLevels
from training.telling.reports import ProgressLine, StepLog
from training.telling.summary import RunSummary, Sources, failures_of
from training.telling.timestep_plot import expected_shares
from training.telling.trackers import Trackers, plain_settings


def watchers(config: TrainConfig, plan: Plan, files: CheckpointPlan, *, write: Callable[[Path, RunState], None],
             accelerator: Any, is_first_start: bool = False) -> list[Callback]:
    """The callbacks that tell of a run, in their order; `write` writes the network as it is.

    `is_first_start` says that no state of the run was there: what it wrote down before it was killed is done again.
    """
    name, every = files.name, config.logging.loss_history_every_n_steps
    found: list[Callback] = [
        StepLog(files.folder, name, replaces_lost=is_first_start),
        Trackers(accelerator, config.logging, plain_settings(config)),
        ProgressLine(config.logging.smi_every), LossHistory(files.folder, name, every),
        NoiseLevels(files.folder, lambda: expected_shares(timestep_settings(config), latent_sizes(plan), BINS),
                    title=f"{name}: {config.noise.timestep_sampling}", every=every)]
    if plan.held_out:
        stopping = config.early_stopping
        metric = Metric(stopping.early_stopping_metric)
        if stopping.save_best is not False:
            found.append(BestCheckpoint(files.best, write, metric))
        if stopping.is_wanted:
            patience = Patience(stopping.early_stopping_patience_steps, stopping.early_stopping_patience_evals,
                                stopping.early_stopping_min_delta)
            found.append(EarlyStopping(patience, metric, goes_on=config.state.continue_training))
    return found


def latent_sizes(plan: Plan) -> dict[tuple[int, int], float]:
    """How many samples of an epoch have each latent height and width."""
    _, high, wide = plan.variant.vae_stride
    sizes: Counter[tuple[int, int]] = Counter()
    for clip in plan.clips:
        sizes[clip.span.height // high, clip.span.width // wide] += clip.item.repeats
    return dict(sizes)


def run_summary(config: TrainConfig, plan: Plan, files: CheckpointPlan, *, callbacks: Sequence[Callback],
                trained: int, processes: int) -> RunSummary:
    """The callback that writes the final page; it stands behind `callbacks`, and `trained` parameters are trained."""
    levels = next(one for one in callbacks if isinstance(one, NoiseLevels))
    best = next((one for one in callbacks if isinstance(one, BestCheckpoint)), None)
    graphs = next((one for one in callbacks if isinstance(one, GraphReport)), None)
    items = len({clip.item.content for clip in plan.held_out})
    conditions = ", ".join(plan.conditions)
    facts = (
        ("task", config.data.task), ("base", str(config.data.dit)), ("dataset", str(config.data.dataset_config)),
        ("clips", f"{len(plan.clips)} trained on, " + (f"{len(plan.held_out)} held out (media files: {items})"
                                                       if plan.held_out else "none held out")),
        ("trained", f"{trained / 1e6:.2f} M parameters: LoRA" + (f" and {conditions}" if conditions else "")),
        ("learning rate", f"{config.optimiser.learning_rate:g}, {config.optimiser.lr_scheduler}, "
                          f"{config.optimiser.optimizer_type}"),
        ("noise levels", config.noise.timestep_sampling), ("seed", str(config.length.seed)))
    return RunSummary(Sources(
        files.folder, files.name, facts, best=lambda: best_words(best) if best else "", noise_levels=levels.rows,
        failures=lambda: failures_of(callbacks), compiled=lambda: graphs.words if graphs else "",
        go_on=lambda outcome: command(config, plan, files, outcome, processes)))


def best_words(best: BestCheckpoint) -> str:
    """Where the best measurement was, and what is kept of it."""
    if best.step is None:
        return f"No {best.metric.words} was measured."
    if not best.step:
        return (f"No {best.metric.words} was better than that of the start (step 0: {best.words}); no best checkpoint "
                "was kept.")
    lost = "" if best.is_written else " The file is gone."
    return f"`{best.path.name}`: step {best.step}, {best.words}.{lost}"


def command(config: TrainConfig, plan: Plan, files: CheckpointPlan, outcome: Outcome, processes: int) -> str:
    """The command that uses a finished run's file, or that goes on with one that was broken off."""
    if outcome is not Outcome.FINISHED:
        start = "python" if processes == 1 else f"accelerate launch --num_processes {processes}"
        return f'{start} train_network.py --config_file "{files.folder / "settings.toml"}" --resume auto'
    hears = any(SOUND in condition.features for condition in plan.conditions.values())
    sound = " --wav2vec … --image_path … --audio …" if hears else ""
    return (f'python generate_video.py --task {config.data.task} --dit "{config.data.dit}" --vae … --t5 …{sound} '
            f'--lora_weight "{files.final}" --prompt "…" --save_path video.mp4')
