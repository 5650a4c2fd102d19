"""Settings of early stopping and of the best checkpoint; imports no torch, so that `--help` stays quick."""

from collections.abc import Iterable
from typing import Literal

from common.config import Section, flag
from training.looking.validation_settings import NEEDS_CLIPS


class EarlyStoppingSection(Section):
    """Early stopping and the best checkpoint, both by what is measured on held-out clips."""

    early_stopping_patience_steps: int = flag(
        0, "stop once the best measurement lies this many optimiser steps back; looked at when a measurement is no "
           "improvement. 0 for never", ge=0)
    early_stopping_patience_evals: int = flag(
        0, "stop after this many measurements without improvement in a row; 0 for never. With both, the first to be "
           "reached stops", ge=0)
    early_stopping_min_delta: float = flag(
        0.0, "by how much a measurement must be better than the best one to count as an improvement", ge=0)
    early_stopping_metric: Literal["held_out_loss", "audio_gap"] = flag(
        "held_out_loss", "what is to improve: held_out_loss (smaller is better), or audio_gap (larger is better; needs "
                         "a condition that hears). --save_best follows it too")
    save_best: bool | None = flag(
        None, "keep the network of the best measurement after the start as NAME-best.safetensors; switched off with "
              "--no_save_best (default: on where files are held out)")

    @property
    def is_wanted(self) -> bool:
        """Whether a run may be stopped early."""
        return bool(self.early_stopping_patience_steps or self.early_stopping_patience_evals)

    def problems(self) -> Iterable[str]:
        """A smallest improvement is one of something that is waited for."""
        if self.early_stopping_min_delta and not self.is_wanted:
            yield ("--early_stopping_min_delta needs --early_stopping_patience_steps or "
                   "--early_stopping_patience_evals.")

    def without_held_out_clips(self) -> Iterable[str]:
        """What cannot be had where nothing is measured."""
        for name in ("patience_steps", "patience_evals"):
            if getattr(self, f"early_stopping_{name}"):
                yield f"--early_stopping_{name} {NEEDS_CLIPS}"
        if self.early_stopping_metric != "held_out_loss":
            yield f"--early_stopping_metric {self.early_stopping_metric} {NEEDS_CLIPS}"
        if self.save_best:
            yield f"--save_best {NEEDS_CLIPS}"
