"""The run's own step on a model without its weights: real classes, random or fake numbers, some or all of the blocks.

What a step needs grows by the same amount with every block of a kind. So the preflight runs two blocks, then one more
of each kind, and adds up (`Portions`). Everything that is no block is there whole.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
import logging
from typing import Any

import torch
from torch import Tensor, nn

from common.features import FeatureBatch
from dataset.batches import LoadedBatch
from networks.base import network_module
from networks.ema import Ema
from networks.formats import LoraFile
from networks.lora import LoraNetwork
from training.job import JobSettings, VideoJob, with_first_frame_shown
from training.optimizers import build_optimizer, is_schedule_free, optimizer_class
from training.parallel import GradientBucket
from training.processes import Processes
from training.step import Draws
from training.timesteps import TimestepSettings
from wan.conditions.registry import build_condition, find_condition
from wan.conditions.sound import AudioCondition
from wan.memory.blocks import run_blocks
from wan.memory.fp8 import Fp8Linear, Fp8Settings
from wan.memory.fp8_model import use_fp8_linears
from wan.memory.planner import as_text
from wan.memory.policies import Policy, parse_policies
from wan.memory.swap import RING
from wan.modules.dit import WanDiT
from wan.variants import Variant

BASE_BLOCKS = 2
"""Blocks that every trial runs: the last ones, because memory peaks where the backward pass begins."""
_ANY_DECAY = 0.5
Make = Callable[[str, torch.Size, torch.dtype], Tensor]
"""A weight by its name."""


@dataclass(frozen=True)
class Recipe:
    """What of a run's settings decides memory and speed."""

    variant: Variant
    dtype: torch.dtype
    """Of the base."""
    is_gpu: bool
    fp8: Fp8Settings | None = None
    activations: str = "none"
    """Policy of every block (`wan.memory.policies`); `full` is gradient checkpointing."""
    compiled: bool = False
    swapped: int = 0
    """Blocks whose weights lie in host memory (`--blocks_to_swap`), and the buffers that they take turns in."""
    ring: int = RING
    offloads: bool = False
    """Whether the inputs of recomputed blocks lie there too."""
    offloaded_attention: int = 0
    """Blocks of which what self-attention gave lies there, and is not computed again; `activations` is `full`."""
    attention: str = "auto"
    network_module: str = "networks.lora_wan"
    network_dim: int | None = None
    network_alpha: float = 1.0
    network_dropout: float | None = None
    network_args: tuple[tuple[str, str], ...] = ()
    sizes_from: LoraFile | None = None
    conditions: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = ()
    """Name and settings as text of each."""
    optimizer_type: str = "AdamW"
    optimizer_args: tuple[str, ...] = ()
    learning_rate: float = 1e-4
    has_average: bool = False
    """Whether an average of the weights is kept (`--ema_decay`)."""

    @property
    def own_times(self) -> bool:
        """Whether tokens have timesteps of their own: a condition shows given frames at timestep 0."""
        return any(("given", "t0") in given for _, given in self.conditions)

    @property
    def checkpointing(self) -> bool:
        """Whether every block is computed again."""
        return self.activations == "full"

    @property
    def without_host_memory(self) -> "Recipe":
        """A recipe that computes as much again, and keeps on the device what of it would lie in host memory."""
        if not self.offloaded_attention:
            return self
        kept: list[Policy] = ["attention" if i < self.offloaded_attention else "full"
                              for i in range(self.variant.layers)]
        return replace(self, activations=as_text(kept))

    @property
    def optimizer_runs_on_fakes(self) -> bool:
        """Whether the optimiser is made of torch's operations; bitsandbytes hands addresses to kernels of its own."""
        return not optimizer_class(self.optimizer_type).__module__.startswith("bitsandbytes")


@dataclass(frozen=True)
class StepInputs:
    """One batch as the model sees it."""

    latents: Tensor
    features: FeatureBatch

    @property
    def samples(self) -> int:
        """Samples of the batch."""
        return len(self.latents)

    def changed(self, change: Callable[[Tensor], Tensor]) -> "StepInputs":
        """With every tensor changed, for example made a fake one."""
        features = replace(self.features, **{one.name: _mapped(getattr(self.features, one.name), change)
                                             for one in fields(self.features)})
        return StepInputs(change(self.latents), features)


def inputs_of(batch: LoadedBatch, conditions: Sequence[str]) -> StepInputs:
    """A batch of the cache with its first latent frame given where a condition wants that."""
    latents, features = batch.latents.float(), batch.features
    if any(find_condition(name).starts_from_picture for name in conditions):
        features = with_first_frame_shown(features, latents, batch.items)
    return StepInputs(latents, features)


@dataclass(frozen=True)
class Portions:
    """Which blocks are run, and what stands for the others."""

    base: tuple[int, ...]
    """Blocks of every run."""
    more: tuple[tuple[int, int], ...] = ()
    """(block, how many blocks of its kind it stands for) of those that are run beside them one at a time."""

    @property
    def blocks(self) -> set[int]:
        """All blocks that are ever run."""
        return {*self.base, *(block for block, _ in self.more)}

    def total(self, measure: Callable[[tuple[int, ...]], float]) -> float:
        """`measure` of all blocks, from its values for few: what one block more of a kind adds, times their number."""
        start = measure(self.base)
        return start + sum(count * (measure(tuple(sorted((*self.base, block)))) - start) for block, count in self.more)


def portions(kinds: Sequence[Any]) -> Portions:
    """The last blocks, and the first block of each kind among the others."""
    split = max(0, len(kinds) - BASE_BLOCKS)
    counts = Counter(kinds[:split])
    return Portions(tuple(range(split, len(kinds))), tuple((kinds.index(kind), counts[kind]) for kind in counts))


class Trial:
    """Model, network, bucket and optimiser of a recipe, and its step on chosen blocks.

    `make(name, shape, dtype)` gives the base's weights. Blocks outside `blocks` stay on the meta device and must not be
    run.
    """

    def __init__(self, recipe: Recipe, make: Make, *, dit: WanDiT,
                 device: torch.device = torch.device("cpu"), blocks: set[int] | None = None,  # noqa: B008
                 told: Callable[[str], None] = lambda part: None) -> None:
        """`dit` is `empty_dit(recipe)`; `told` hears of each part as soon as it is there."""
        self.recipe, self.dit = recipe, dit
        fill(dit, recipe.dtype, make, blocks)
        told("base")
        if recipe.attention == "math" or not recipe.is_gpu or device.type == "cuda":
            dit.set_attention(recipe.attention)
        if recipe.activations != "none" or recipe.compiled:
            run_blocks(dit, parse_policies(recipe.activations, len(dit.blocks)), compiled=recipe.compiled,
                       has_dropout=bool(recipe.network_dropout))
        with _quiet("networks"):
            self.network = self._network()
        if device.type != "cpu":  # fake modules cannot be moved, and need not be
            self.network.to(device)
        self.network.attach().train()
        told("network")
        self.job = VideoJob(dit, self.network, JobSettings(0, TimestepSettings()), epoch_batches=_no_batches,
                            batches_per_epoch=1, samples_per_epoch=1)
        self.bucket = GradientBucket(self.network.parameters(), Processes(device=device))
        told("gradients")
        self.average = Ema(self.network, _ANY_DECAY) if recipe.has_average else None
        told("average")
        self.optimizer: torch.optim.Optimizer | None = None

    def _network(self) -> LoraNetwork:
        recipe = self.recipe
        conditions = {name: build_condition(name, dict(settings), recipe.variant)
                      for name, settings in recipe.conditions}
        network: LoraNetwork = network_module(recipe.network_module).create_network(
            self.dit, dim=recipe.network_dim, alpha=recipe.network_alpha, dropout=recipe.network_dropout,
            args=dict(recipe.network_args), conditions=conditions, sizes_from=recipe.sizes_from, seed=0)
        return network

    def make_optimizer(self, *more: str) -> None:
        """The run's optimiser; `more` are arguments beside the user's."""
        recipe = self.recipe
        with _quiet("training"):
            self.optimizer = build_optimizer(
                recipe.optimizer_type, self.network.parameter_groups(recipe.learning_rate),
                learning_rate=recipe.learning_rate, arguments=[*recipe.optimizer_args, *more])
        if is_schedule_free(self.optimizer):
            self.optimizer.train()  # type: ignore[attr-defined]

    def kinds(self, policies: str) -> list[Any]:
        """What distinguishes each block: LoRA layers with their ranks, conditions that it hears, its policy."""
        layers: dict[int, list[tuple[str, int]]] = {i: [] for i in range(len(self.dit.blocks))}
        for path, layer in self.network.layers.items():
            _, number, name = path.split(".", 2)
            layers[int(number)].append((name, layer.rank))
        heard = {name: condition.blocks_heard for name, condition in self.job.conditions.items()
                 if isinstance(condition, AudioCondition)}
        kept = parse_policies(policies, len(layers))
        return [(tuple(layers[i]), tuple(name for name, blocks in heard.items() if i in blocks), kept[i])
                for i in layers]

    def forward_backward(self, inputs: StepInputs, blocks: Sequence[int]) -> None:
        """One batch: loss and gradients, added to the bucket."""
        with only_blocks(self.dit, blocks):
            total = self._loss(inputs)
            total.backward()
            self.bucket.add_loss(total, inputs.samples)

    def forward(self, inputs: StepInputs, blocks: Sequence[int]) -> None:
        """One batch without gradients, as validation looks at it."""
        with only_blocks(self.dit, blocks), torch.no_grad():
            self._loss(inputs)

    def _loss(self, inputs: StepInputs) -> Tensor:
        draws = Draws(torch.zeros_like(inputs.latents), torch.full((inputs.samples,), 0.5))
        (result,) = self.job.steps(inputs.latents, inputs.features, draws, TimestepSettings())
        return result.loss


@contextmanager
def only_blocks(dit: WanDiT, blocks: Sequence[int]) -> Iterator[None]:
    """Inside, the other blocks, with their hooks, hand their tokens on as they came."""
    if len(set(blocks)) == len(dit.blocks):  # what stands around `run_block` stays in sight
        yield
        return
    run_block, own = dit.run_block, vars(dit).get("run_block")

    def run_or_skip(i: int, tokens: Tensor, inputs: Any) -> Tensor:
        return run_block(i, tokens, inputs) if i in blocks else tokens

    dit.run_block = run_or_skip  # type: ignore[method-assign]
    try:
        yield
    finally:
        del dit.run_block
        if own is not None:
            dit.run_block = own  # type: ignore[method-assign]


def empty_dit(recipe: Recipe) -> WanDiT:
    """The base on the meta device, its block linears ready for float8 where the recipe has it."""
    with torch.device("meta"):
        dit = WanDiT(recipe.variant)
    if recipe.fp8 is not None:
        use_fp8_linears(dit, recipe.fp8)
    return dit.eval().requires_grad_(False)


def fill(dit: WanDiT, dtype: torch.dtype, make: Make, blocks: set[int] | None) -> None:
    """Give every parameter numbers, those of left-out blocks excepted, and store them as loading does."""
    for name, parameter in list(dit.named_parameters()):
        if blocks is not None and name.startswith("blocks.") and int(name.split(".")[1]) not in blocks:
            continue
        path, _, last = name.rpartition(".")
        owner = dit.get_submodule(path)
        value = make(name, parameter.shape, dtype)
        if isinstance(owner, Fp8Linear) and last == "weight":
            owner.store(value, dtype)
        else:
            setattr(owner, last, nn.Parameter(value, requires_grad=False))


@contextmanager
def _quiet(room: str) -> Iterator[None]:
    """Inside, the room's loggers tell only errors: what they say of a trial, they say again of the run."""
    logger = logging.getLogger(room)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(one, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(one, change) for one in value)
    return value


def _no_batches(epoch: int, start: int) -> Any:
    raise AssertionError("a trial is given its batches")
