"""TensorBoard and Weights & Biases through accelerate; whatever fails there only warns."""

from collections.abc import Mapping
from datetime import datetime
import os
from pathlib import Path
from typing import Any

from common.config import Section, flags_of
from common.config.show import value_of
from common.logs import get_logger
from training.callbacks import Callback, Outcome, Run, StepReport, ValidationReport
from training.config import LoggingSection

log = get_logger(__name__)
DEFAULT_PROJECT = "network_train"


def tracker_names(settings: LoggingSection) -> list[str]:
    """accelerate's names of the trackers that were asked for; one line for each that is not installed."""
    from importlib.util import find_spec

    wanted = {"all": ["tensorboard", "wandb"], None: ["tensorboard"] if settings.logging_dir else []}
    names = wanted.get(settings.log_with, [settings.log_with or ""])
    if "tensorboard" in names and settings.logging_dir is None:
        log.warning("--log_with tensorboard needs --logging_dir; its logs are not written")
        names = [name for name in names if name != "tensorboard"]
    missing = [name for name in names if find_spec(name) is None]
    for name in missing:
        log.warning("tracker %s is not installed (pip install %s); its logs are not written", name, name)
    return [name for name in names if name not in missing]


def log_folder(settings: LoggingSection) -> Path | None:
    """``LOGGING_DIR/PREFIX20261121093000``: a folder of its own for each run."""
    if settings.logging_dir is None:
        return None
    return settings.logging_dir / f"{settings.log_prefix or ''}{datetime.now():%Y%m%d%H%M%S}"


def plain_settings(config: Section) -> dict[str, int | float | str | bool]:
    """Settings that may leave the machine: no secrets, no paths, and only types that every tracker takes."""
    plain: dict[str, int | float | str | bool] = {}
    for field in flags_of(type(config)):
        value = value_of(config, field)
        holds_path = isinstance(value, Path) or (isinstance(value, list) and any(isinstance(v, Path) for v in value))
        if field.is_secret or value is None or holds_path:
            continue
        plain[field.name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return plain


class Trackers(Callback):
    """Sends each step's figures to the trackers of an Accelerator."""

    def __init__(self, accelerator: Any, settings: LoggingSection, values: Mapping[str, Any]) -> None:
        self._accelerator, self._settings, self._values = accelerator, settings, dict(values)
        self._works = False

    def on_start(self, run: Run) -> None:
        """Open the trackers."""
        if not self._accelerator.log_with:
            return
        if self._settings.wandb_api_key:
            os.environ["WANDB_API_KEY"] = self._settings.wandb_api_key
        self._works = True
        self._try("start", lambda: self._accelerator.init_trackers(
            self._settings.log_tracker_name or DEFAULT_PROJECT,
            config=self._values if self._settings.log_config else {}, init_kwargs=_init_kwargs(self._settings)))

    def on_step(self, run: Run, report: StepReport) -> None:
        """Send loss, moving average, learning rates and gradient norm."""
        values = {"loss/current": report.loss, "loss/average": report.average_loss, "grad_norm": report.grad_norm,
                  "seconds_per_step": report.seconds}
        values |= {f"lr/{name}": rate for name, rate in report.learning_rates.items()}
        if self._works:
            self._try("log", lambda: self._accelerator.log(values, step=report.step))

    def on_validation(self, run: Run, report: ValidationReport) -> None:
        """Send the figures of the held-out clips, those that there are."""
        values = {"loss/validation/average": report.loss}
        if report.audio is not None:
            values["loss/validation/audio_gap"] = report.audio.gap
            if report.audio.null_gap is not None:
                values["loss/validation/null_gap"] = report.audio.null_gap
        for one in report.by_sigma:
            values[f"loss/validation/sigma_{one.sigma:g}"] = one.loss
            if one.gap is not None:
                values[f"loss/validation/audio_gap_sigma_{one.sigma:g}"] = one.gap
        if self._works:
            self._try("log", lambda: self._accelerator.log(values, step=report.step))

    def on_end(self, run: Run, outcome: Outcome) -> None:
        """Close the trackers, and not with them accelerate's process group: other callbacks end after this one."""
        for tracker in self._accelerator.trackers if self._works else ():
            self._try("close", tracker.finish)

    def _try(self, what: str, action: Any) -> None:
        """Training outlives its trackers: they talk to servers and disks that may be gone."""
        try:
            action()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - third parties raise anything, and it may not stop us
            self._works = False
            log.warning("tracker: could not %s (%s: %s); training goes on without it, metrics.jsonl is written",
                        what, type(error).__name__, error)


def _init_kwargs(settings: LoggingSection) -> dict[str, Any]:
    kwargs: dict[str, Any] = {}
    if settings.log_tracker_config is not None:
        from common.config import read_toml

        kwargs = dict(read_toml(settings.log_tracker_config).data)
    if settings.wandb_run_name:
        kwargs["wandb"] = {**kwargs.get("wandb", {}), "name": settings.wandb_run_name}
    return kwargs
