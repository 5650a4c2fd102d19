"""LoRA gradients of a step of the 14B model at its real sizes, on random weights, block by block.

One model for all: the weights are float8 with a scale each, and the reference multiplies the very same weights, turned
back into bfloat16. So only products, compiling and attention differ. The yardstick is the same step in float32. The
LoRA (rank 32, every linear of the blocks) stands where both of its factors have gradients.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
import time
from typing import Any

import torch
from torch import nn

from benchmarks.gate.gradients import Gradients, by_block, compared
from benchmarks.gate.variants import REFERENCE, YARDSTICK, Variant
from benchmarks.random_weights import SIZES
from common.features import FeatureBatch
from training.estimating.random_weights import random_weight
from training.estimating.trial import Recipe, Trial, empty_dit
from training.step import Draws
from training.timesteps import TimestepSettings
from wan.memory.blocks import run_blocks
from wan.memory.fp8 import Fp8Linear, Fp8Settings
from wan.memory.fp8_compute import Fp8ProductLinear
from wan.memory.policies import parse_policies
from wan.modules.dit import WanDiT
from wan.variants import Variant as DitVariant

LEVEL = 0.7
"""Noise level of the step."""
UP = 0.01
"""Deviation of the LoRA's up factors: a change of about a fiftieth of a weight."""


@dataclass(frozen=True)
class Size:
    """A model and a clip."""

    name: str
    task: str
    grid: tuple[int, int, int]
    """Latent frames, latent height, latent width."""
    rank: int = 32


SIZE_14B = Size("14B 480x480x25", "t2v-14B", (7, 60, 60))
SIZE_TINY = Size("tiny", "tiny", (3, 8, 12), rank=4)


def large_lines(size: Size, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A line for each variant. Float32 comes right before the reference; compiling, which takes longest, comes last."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    started = time.monotonic()
    step = LargeStep(size, device)
    built = time.monotonic() - started
    named = device.type if device.type == "cpu" else torch.cuda.get_device_name()
    about = {"model": size.name, "when": "random", "device": named, "torch": torch.__version__, "built_s": built}
    order = sorted(names, key=lambda name: "compile" in name)
    for line in compared((YARDSTICK, REFERENCE, *order), step.gradients, about):
        yield {**line, "seconds": step.seconds}


class LargeStep:
    """The model, and its step under any variant."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.device = device
        variant = DitVariant(**SIZES[size.task])
        recipe = Recipe(variant=variant, dtype=torch.bfloat16, is_gpu=device.type == "cuda", activations="full",
                        fp8=Fp8Settings(mode="tensor", computes=True), network_dim=size.rank,
                        network_alpha=float(size.rank))
        draws = torch.Generator(device).manual_seed(0)
        self.dit = empty_dit(recipe)
        self.trial = Trial(recipe, partial(random_weight, device=device, draws=draws), dit=self.dit, device=device)
        self.products = [module for module in self.dit.modules() if type(module) is Fp8ProductLinear]
        for layer in self.trial.network.layers.values():
            for name, parameter in layer.named_parameters():
                if name.startswith("lora_up"):
                    parameter.data.normal_(std=UP, generator=draws)
        frames, height, width = size.grid
        latents = torch.randn(1, 16, frames, height, width, device=device, generator=draws)
        text = torch.randn(512, variant.text_dim, device=device, generator=draws)
        features = FeatureBatch(features={"text": {"hidden": [text]}}, frames=4 * frames - 3, fps=16.0)
        self.batch = latents, features
        self.draws = Draws(torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)),
                           torch.tensor([LEVEL]))
        self.seconds = 0.0
        """Of the last step, compiling included."""

    def gradients(self, variant: Variant) -> Gradients:
        """Of the step under `variant`."""
        network = self.trial.network
        network.detach()
        multiply(self.products, in_fp8=variant.multiplies_in_fp8)
        hold_in(self.dit, torch.float32 if variant.name == YARDSTICK else torch.bfloat16)
        network.attach()
        self.dit.set_attention(variant.attention)
        run_blocks(self.dit, parse_policies("full", len(self.dit.blocks)), compiled=variant.is_compiled,
                   has_dropout=False)
        self.trial.bucket.clear()
        started = time.monotonic()
        (result,) = self.trial.job.steps(*self.batch, self.draws, TimestepSettings())
        result.loss.backward()
        vectors = by_block(network)  # waits for the device
        self.seconds = round(time.monotonic() - started, 2)
        return vectors


def multiply(layers: Sequence[nn.Module], *, in_fp8: bool) -> None:
    """Have layers multiply in float8, or their stored weights in the input's dtype.

    What such a layer computes is its class; its numbers stay. No network may be attached meanwhile.
    """
    for layer in layers:
        layer.__class__ = Fp8ProductLinear if in_fp8 else Fp8Linear


def hold_in(dit: WanDiT, dtype: torch.dtype) -> None:
    """Bring all but float8 weights and their scales to `dtype`. From bfloat16 to float32 and back is exact."""
    for path, module in dit.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not (isinstance(module, Fp8Linear) and name == "weight"):
                setattr(dit.get_submodule(path), name, nn.Parameter(parameter.data.to(dtype), requires_grad=False))
