"""What the trainings of the small set share: flags, schedule, optimiser with a running mean, and the record."""

import argparse
from collections.abc import Iterator
import json
import math
from pathlib import Path
import platform
import time
from typing import Any

import torch
from torch import nn

from common.atomic import write_text
from common.errors import ConfigError

LOGS = 150
"""Rows of a whole run's log."""


def add_training_flags(parser: argparse.ArgumentParser, *, steps: int, minutes: float, rate: float, batch: int) -> None:
    """Flags that every training has, with this one's defaults."""
    parser.add_argument("--steps", type=int, default=steps, help=f"training steps (default {steps})")
    parser.add_argument("--minutes", type=float, default=minutes, help="time from the start of the command in "
                        f"which a slower machine ends the same schedule in fewer steps (default {minutes:g})")
    parser.add_argument("--rate", type=float, default=rate, help=f"highest learning rate (default {rate:g})")
    parser.add_argument("--batch", type=int, default=batch, help=f"clips a step (default {batch})")
    parser.add_argument("--seed", type=int, default=0, help="draws weights, batches and noise")


def start(settings: argparse.Namespace) -> str:
    """Seed torch, allow TF32, let the time run, and return the device: the first GPU, or the CPU.

    ConfigError for an impossible flag.
    """
    if settings.steps < 1 or settings.batch < 1 or settings.minutes <= 0:
        raise ConfigError(f"--steps {settings.steps}, --batch {settings.batch} and --minutes {settings.minutes:g} must "
                          "be above 0.")
    settings.until = time.monotonic() + 60 * settings.minutes
    torch.manual_seed(settings.seed)
    allow_tf32()
    return "cuda" if torch.cuda.is_available() else "cpu"


def allow_tf32() -> None:
    """Let a GPU multiply in TF32 and choose its fastest convolutions."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


class Course:
    """The steps of one training, its learning rate and its log.

    One cosine over `steps` after a short linear start. Where `minutes` would be over before that, the clock leads: the
    schedule always ends, and a machine that is fast enough makes the same steps with the same rates every time.
    """

    def __init__(self, settings: argparse.Namespace) -> None:
        self.total, self.until, self.peak = settings.steps, settings.until, settings.rate
        self.warm_up = min(200, self.total // 20 + 1)
        self.log: list[dict[str, float]] = []
        self.step = 0
        self.passed = 0.0
        self.progress = 0.0

    def __iter__(self) -> Iterator[int]:
        """Step numbers from 1."""
        for step in range(1, self.total + 1):
            if step <= 2:  # the first step also compiles what was not yet: the course's time begins behind it
                started = time.monotonic()
                seconds = max(self.until - started, 1.0)
            self.passed = time.monotonic() - started
            self.progress = max((step - 1) / self.total, self.passed / seconds)
            if self.progress >= 1:
                return
            self.step = step
            yield step
        self.passed = time.monotonic() - started

    @property
    def rate(self) -> float:
        """Learning rate of this step."""
        return self.peak * min(1, self.step / self.warm_up) * (0.5 + 0.5 * math.cos(math.pi * self.progress))

    @property
    def is_logged(self) -> bool:
        """Whether this step has a row in the log."""
        return self.step % max(1, self.total // LOGS) == 0 or self.step == self.total

    def note(self, **values: float) -> None:
        """Add a row; every tenth one is printed."""
        row = {"step": self.step, "seconds": round(self.passed, 1)} | {k: round(v, 5) for k, v in values.items()}
        self.log.append(row)
        if len(self.log) % 10 == 1:
            print(row, flush=True)


class Masters:
    """float32 copies of a model's trained parameters, of any dtype, which AdamW steps, and their running mean."""

    def __init__(self, model: nn.Module, *, betas: tuple[float, float] = (0.9, 0.99), decay: float = 0.01,
                 mean: float = 0.999) -> None:
        self.used = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.full = [p.detach().float().clone().requires_grad_() for p in self.used]
        self.mean = [p.detach().clone() for p in self.full]
        self.memory, self.count = mean, 0
        self.optimizer = torch.optim.AdamW(self.full, betas=betas, weight_decay=decay, fused=True)
        for full in self.full:
            full.grad = torch.zeros_like(full)

    @torch.no_grad()
    def step(self, rate: float, largest: float = 1.0) -> None:
        """One step at learning rate `rate` with the model's gradients, whose norm is cut at `largest`."""
        self.count += 1
        given = [(full.grad, used.grad) for full, used in zip(self.full, self.used, strict=True)
                 if used.grad is not None]
        torch._foreach_copy_([full for full, _ in given], [used for _, used in given])
        for used in self.used:
            used.grad = None
        nn.utils.clip_grad_norm_(self.full, largest)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        torch._foreach_lerp_(self.mean, self.full, 1 - min(self.memory, (self.count + 1) / (self.count + 10)))
        torch._foreach_copy_(self.used, self.full)

    @torch.no_grad()
    def use_mean(self) -> None:
        """Put the running mean into the model."""
        torch._foreach_copy_(self.used, self.mean)


def write_record(path: Path, settings: argparse.Namespace, course: Course, summary: dict[str, Any]) -> None:
    """train_NAME.json: flags, versions, device, steps, seconds of the steps, what was measured, and the log."""
    on_gpu = torch.cuda.is_available()
    flags = {name: value.name if isinstance(value, Path) else value for name, value in vars(settings).items()
             if name != "until"}
    record = {"settings": flags, "python": platform.python_version(), "torch": torch.__version__,
              "device": torch.cuda.get_device_name() if on_gpu else "CPU", "steps": course.step,
              "seconds": round(course.passed, 1), "summary": summary}
    print(summary, flush=True)
    head = json.dumps(record, indent=1)[:-2]
    rows = ",\n".join("  " + json.dumps(row) for row in course.log)
    write_text(path, f'{head},\n "log": [\n{rows}\n ]\n}}\n')
