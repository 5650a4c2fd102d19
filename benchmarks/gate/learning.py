"""One training of the demo under a variant, what it says of held-out clips, and how well its mouths follow sounds.

Everything goes the way of train_network.py and generate_video.py, in one process. All variants of a seed see the same
clips in the same order with the same noise. Generation is the same for all: it multiplies in the device's own
precision, so that only what was learnt differs.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
import json
import logging
from pathlib import Path
from statistics import mean
import time
from typing import Any

import torch

from benchmarks.gate.variants import Variant
from common.config import parse
from tools.proof.commands import SET, T5, VAE, WAV2VEC, Commands, train_command
from tools.proof.inputs import Item, make_items, unseen_faces, unseen_sounds
from tools.proof.recipe import DEMO, FRAMES, FULL, Recipe
from training.config import TrainConfig

RECIPES = {"demo": DEMO, "full": FULL}
USUAL_STEPS = 300
SMOOTHED = 100
"""Last steps over which the training loss is averaged."""
ITEM_SEED = 42
"""Of the generations' noise, whatever the seed of the training."""


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison have in common."""

    work: Path
    """Folder of caches and checkpoints."""
    recipe: str
    steps: int
    faces: int
    sounds: int
    more: tuple[str, ...] = ()
    """Further flags of train_network.py, for every variant."""

    def recipe_of(self, seed: int, variant: Variant) -> Recipe:
        """The demo's recipe with the variant's flags."""
        base = RECIPES[self.recipe]
        short = ("--lr_warmup_steps", str(self.steps // 10)) if self.steps < USUAL_STEPS else ()
        return replace(base, steps=self.steps, seed=seed, validate_every=max(1, self.steps // 3),
                       train_args=(*base.train_args, *short, *variant.flags, *self.more))

    def items(self) -> list[Item]:
        """Unseen faces with unseen utterances."""
        unseen = SET / "unseen"
        return make_items(unseen_faces(unseen)[:self.faces], unseen_sounds(unseen)[:self.sounds], ITEM_SEED)


class InProcess(Commands):
    """The demo's commands without a process for each of train_network.py and generate_video.py."""

    def cache(self) -> None:
        """Encode pictures, captions and sound; on a GPU in this process, for the small models take no time there."""
        if not torch.cuda.is_available():
            return super().cache()
        import precompute

        models = precompute.ModelFiles(vae=VAE, t5=T5, wav2vec=WAV2VEC, device="cuda")
        assert not precompute.run(["latents", "text", "audio"], self.dataset, models=models).failed
        return None

    def run(self, words: list[str]) -> None:
        """Run a command here."""
        if "train_network.py" in words:
            from training import train

            train(settings_of(words))
        elif "generate_video.py" in words:
            from inference.command import run_request
            from inference.foreign import FOREIGN
            from inference.request import GenerationRequest

            run_request(parse(GenerationRequest, words[1:], prog=words[0], description="", foreign=FOREIGN))
        else:
            super().run(words)


def settings_of(words: Sequence[str]) -> TrainConfig:
    """The settings that train_network.py makes of a command."""
    from training.foreign import FOREIGN

    place = list(words).index("train_network.py")
    return parse(TrainConfig, list(words[place + 1:]), prog=words[place], description="", foreign=FOREIGN)


def commands_of(setting: Setting, variant: Variant, seed: int) -> InProcess:
    """The commands of a run; its folder is named after variant and seed."""
    return InProcess(setting.work, setting.recipe_of(seed, variant), folder=f"{variant.name}-{seed}")


def gradient_settings(setting: Setting, variant: Variant, seed: int, start: Path) -> TrainConfig:
    """Settings of a training that would begin at `start`."""
    commands = commands_of(setting, variant, seed)
    return settings_of(train_command(commands.recipe, commands.dataset, setting.work / "gradients", start))


def learn(setting: Setting, variant: Variant, seed: int) -> dict[str, Any]:
    """Train, generate and measure; the figures."""
    from tools.proof.designs import measure_items

    commands, started = commands_of(setting, variant, seed), time.monotonic()
    commands.begin()
    with refusing_fallback(variant):
        commands.train()
    trained = time.monotonic()
    losses, held_out = read_metrics(commands.result / "lora" / "metrics.jsonl")
    items = setting.items()
    sync = measure_items(items, commands.generate("after", items))
    return {"kind": "run", "variant": variant.name, "seed": seed, **facts(setting), "losses": losses,
            "trained_loss": mean(losses[-SMOOTHED:]), "held_out": held_out, "held_out_loss": held_out[-1][1],
            "audio_gap": held_out[-1][2], "mean_r": sync.mean_r, "least_r": sync.least_r, "measured": sync.measured,
            "clips": sync.clips, "train_s": round(trained - started, 1),
            "generate_s": round(time.monotonic() - trained, 1)}


@contextmanager
def refusing_fallback(variant: Variant) -> Iterator[None]:
    """RuntimeError behind it where blocks of a compiled variant ran uncompiled: its figures would be another one's."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("wan.memory.blocks")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    if variant.is_compiled and told:
        raise RuntimeError(told[0])


def facts(setting: Setting) -> dict[str, Any]:
    """What must be equal for two lines to be compared."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"recipe": setting.recipe, "steps": setting.steps, "items": setting.faces * setting.sounds,
            "more": list(setting.more), "device": device, "torch": torch.__version__, "frames": FRAMES}


def read_metrics(path: Path) -> tuple[list[float], list[tuple[int, float, float]]]:
    """(loss of each step, (step, held-out loss, audio-shift gap) of each validation) of a run."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    losses = [round(row["loss"], 6) for row in rows if "event" not in row]
    held_out = [(row["step"], row["held_out_loss"], row["audio_gap"]) for row in rows
                if row.get("event") == "validation"]
    return losses, held_out
