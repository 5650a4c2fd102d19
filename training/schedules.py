"""Learning-rate schedules as closed-form factors of the optimiser step, all run by one LambdaLR.

Steps are optimiser steps, whatever the accumulation and the number of processes. Names and formulas are those of
transformers (and diffusers for piecewise_constant), so that numbers agree with other trainers; warm-up works with each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import inspect
import math
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, nearest

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

POLYNOMIAL_END_LR = 1e-7
REX_MIN_LR_RATIO = 0.01


@dataclass(frozen=True)
class ScheduleSettings:
    """Settings of a schedule; the fields are the flags' names without `lr_scheduler_`."""

    name: str = "constant"
    total_steps: int = 1
    warmup_steps: int = 0
    decay_steps: int = 0
    num_cycles: int = 1
    power: float = 1.0
    timescale: int | None = None
    min_lr_ratio: float | None = None
    learning_rate: float = 1.0
    step_rules: str = ""
    """piecewise_constant: ``1:10,0.1:20,0.01`` is factor 1 up to step 10, 0.1 up to step 20, then 0.01."""


Factor = Callable[[int, ScheduleSettings], float]


def _progress(step: int, s: ScheduleSettings) -> float:
    """Share of the steps after warm-up that is done."""
    return (step - s.warmup_steps) / max(1, s.total_steps - s.warmup_steps)


def constant(step: int, s: ScheduleSettings) -> float:
    """1."""
    return 1.0


def linear(step: int, s: ScheduleSettings) -> float:
    """From 1 down to 0 at the last step."""
    return max(0.0, 1 - _progress(step, s))


def cosine(step: int, s: ScheduleSettings) -> float:
    """Half a cosine from 1 to 0."""
    return max(0.0, 0.5 * (1 + math.cos(math.pi * _progress(step, s))))


def cosine_with_restarts(step: int, s: ScheduleSettings) -> float:
    """`num_cycles` half cosines, each from 1 to 0."""
    progress = _progress(step, s)
    return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * ((s.num_cycles * progress) % 1)))


def polynomial(step: int, s: ScheduleSettings) -> float:
    """(1 - progress)^power, from 1 to an end rate of 1e-7."""
    end = POLYNOMIAL_END_LR / s.learning_rate
    return end if step > s.total_steps else (1 - end) * (1 - _progress(step, s)) ** s.power + end


def inverse_sqrt(step: int, s: ScheduleSettings) -> float:
    """sqrt(timescale / (step after warm-up + timescale)); timescale defaults to the warm-up, else 10000."""
    timescale = s.timescale or s.warmup_steps or 10_000
    return 1 / math.sqrt((step + timescale - s.warmup_steps) / timescale)


def cosine_with_min_lr(step: int, s: ScheduleSettings) -> float:
    """`num_cycles` half cosines in one run of the phase, from 1 to min_lr_ratio."""
    floor = s.min_lr_ratio or 0.0
    factor = 0.5 * (1 + math.cos(math.pi * s.num_cycles * _progress(step, s)))
    return max(0.0, factor * (1 - floor) + floor)


def warmup_stable_decay(step: int, s: ScheduleSettings) -> float:
    """1 until `decay_steps` before the end, then a cosine down to min_lr_ratio."""
    floor = s.min_lr_ratio or 0.0
    start = s.total_steps - s.decay_steps
    if step < start:
        return 1.0
    if step >= s.total_steps:
        return floor
    factor = 0.5 * (1 + math.cos(math.pi * s.num_cycles * (step - start) / max(1, s.decay_steps)))
    return max(0.0, factor * (1 - floor) + floor)


def rex(step: int, s: ScheduleSettings) -> float:
    """Reflected exponential: with z the share that remains, m + (1 - m) z / (0.1 + 0.9 z); m = min_lr_ratio."""
    floor = REX_MIN_LR_RATIO if s.min_lr_ratio is None else s.min_lr_ratio
    z = max(0.0, 1 - _progress(step, s))
    return floor + (1 - floor) * z / (0.1 + 0.9 * z)


def parse_step_rules(text: str) -> tuple[list[tuple[int, float]], float]:
    """([(step before which the factor holds, factor), …], last factor) of ``1:10,0.1:20,0.01``; ConfigError else."""
    *rules, last = [part.strip() for part in text.split(",")]
    try:
        pairs = [(int(steps), float(factor)) for factor, steps in (rule.split(":") for rule in rules)]
        return sorted(pairs), float(last)
    except ValueError as error:
        raise ConfigError(f"step_rules '{text}' is not of the form 1:10,0.1:20,0.01 (factor:until step, …, last "
                          "factor). Give it as lr_scheduler_args step_rules=….") from error


def piecewise_constant(step: int, s: ScheduleSettings) -> float:
    """The factor that `step_rules` names for the step."""
    rules, last = parse_step_rules(s.step_rules)
    return next((factor for until, factor in rules if step < until), last)


SCHEDULES: Mapping[str, Factor] = {
    "constant": constant,
    "constant_with_warmup": constant,
    "linear": linear,
    "cosine": cosine,
    "cosine_with_restarts": cosine_with_restarts,
    "polynomial": polynomial,
    "inverse_sqrt": inverse_sqrt,
    "cosine_with_min_lr": cosine_with_min_lr,
    "warmup_stable_decay": warmup_stable_decay,
    "rex": rex,
    "piecewise_constant": piecewise_constant,
    "adafactor": constant,  # Adafactor with relative_step chooses its own rate
}


def factor_at(step: int, settings: ScheduleSettings) -> float:
    """Factor of the learning rate before optimiser step `step` (0 is the first)."""
    if step < settings.warmup_steps:
        warm = step / max(1, settings.warmup_steps)
        # This one warms up from its floor, the others from 0.
        floor = (settings.min_lr_ratio or 0.0) if settings.name == "warmup_stable_decay" else 0.0
        return warm * (1 - floor) + floor
    return SCHEDULES[settings.name](step, settings)


def parse_steps(value: int | float | str | None, total_steps: int) -> int:
    """Steps of ``500``, ``0.1`` or ``"10%"`` (shares of `total_steps`, rounded down); None is 0.

    Raises ConfigError when it is neither or lies outside 0…total.
    """
    text = str(value if value is not None else 0).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise ConfigError(f"'{text}' is no number of steps. Give 500, 0.1 or 10%.") from error
    is_share = text.endswith("%") or number < 1
    steps = int(number * total_steps + 1e-6) if is_share else int(number)
    if number < 0 or (is_share and number > 1) or (not is_share and number != steps):
        raise ConfigError(f"'{text}' is no number of steps. Give a whole number, or a share such as 0.1 or 10%.")
    return steps


def check_schedule(settings: ScheduleSettings) -> None:
    """ConfigError for an unknown name, or settings that the schedule cannot work with."""
    if settings.name not in SCHEDULES:
        raise ConfigError(f"lr_scheduler '{settings.name}' is unknown{nearest(settings.name, SCHEDULES)}. "
                          f"It is one of {', '.join(SCHEDULES)}; any other class goes to lr_scheduler_type.")
    if settings.warmup_steps + settings.decay_steps > settings.total_steps:
        raise ConfigError(f"lr_warmup_steps {settings.warmup_steps} and lr_decay_steps {settings.decay_steps} are more "
                          f"than the {settings.total_steps} steps of the run.")
    if settings.name == "piecewise_constant":
        parse_step_rules(settings.step_rules)
    if settings.name == "cosine_with_min_lr" and settings.min_lr_ratio is None:
        raise ConfigError("lr_scheduler cosine_with_min_lr needs lr_scheduler_min_lr_ratio (for example 0.1).")


def build_scheduler(optimizer: "Optimizer", settings: ScheduleSettings) -> "LRScheduler":
    """A LambdaLR that multiplies the rate of every group by `factor_at`; step it once an optimiser step."""
    from torch.optim.lr_scheduler import LambdaLR

    check_schedule(settings)
    return LambdaLR(optimizer, lambda step: factor_at(step, settings))


def set_rates(optimizer: "Optimizer", schedule: Any) -> None:
    """Have the next step learn at the rates of a LambdaLR's own course: those that a state holds are of the course that
    the run had then, which a longer run leaves."""
    from torch.optim.lr_scheduler import LambdaLR

    if isinstance(schedule, LambdaLR):
        for group, base, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)


def build_custom_scheduler(optimizer: "Optimizer", dotted_class: str, arguments: Sequence[str]) -> "LRScheduler":
    """A scheduler of any class (`lr_scheduler_type`) with `name=value` arguments; a bare name is one of torch."""
    from training.optimizers import import_class, parse_arguments

    path = dotted_class if "." in dotted_class else f"torch.optim.lr_scheduler.{dotted_class}"
    scheduler_class: Any = import_class(path, "lr_scheduler_type")
    needed = [name for name, one in [*inspect.signature(scheduler_class.step).parameters.items()][1:]
              if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD]
    if needed:
        raise ConfigError(f"lr_scheduler_type '{path}' wants to be told {', '.join(needed)} at every step, and a "
                          "schedule here goes by steps alone. Choose another; --early_stopping_patience_evals looks at "
                          "measurements.")
    return scheduler_class(optimizer, **parse_arguments(arguments, scheduler_class, "lr_scheduler_args",
                                                        taken=("optimizer",)))
