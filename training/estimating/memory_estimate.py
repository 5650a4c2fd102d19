"""Memory of a training step, from a step of the real classes on tensors that have shapes and no numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
import gc
from importlib.util import find_spec
import inspect
from statistics import median_low
from typing import Any

import torch

from common.logs import get_logger
from training.estimating.live_bytes import LiveBytes, counted_fakes, fake_like
from training.estimating.trial import Portions, Recipe, StepInputs, Trial, empty_dit, portions
from training.optimizers import build_optimizer, optimizer_class
from wan.memory.estimate import Holding, memory_need
from wan.memory.fp8 import Fp8Settings
from wan.memory.planner import Step
from wan.memory.policies import parse_policies

log = get_logger(__name__)

GIB = 2**30
WORKSPACES = GIB // 10
"""What cuBLAS and the kernels take beside tensors. On an H200 the peak that torch measured lay 0.07 to 0.13 GiB above
the sum of the tensors, at widths 1536 and 5120 and at 7,800 and 32,760 tokens."""
CONTEXT = 6 * GIB // 10
"""Margin for the CUDA context and the loaded kernels, which torch does not count. A choice, no measurement."""
CRUMBS = 0.05
"""Margin for memory that torch's allocator holds between the tensors, as a share of what comes and goes in a step. A
choice, no measurement."""


@dataclass(frozen=True)
class SavedNetwork:
    """What a checkpoint holds."""

    numbers: int
    """Trained numbers, in the precision of saving."""
    alphas: int
    """Alphas, always float32."""
    header: int
    """Bytes of the names, shapes and places in the file, metadata not counted."""

    def bytes_at(self, dtype: torch.dtype) -> int:
        """Size of a checkpoint, metadata (some kilobytes) not counted."""
        return self.numbers * dtype.itemsize + self.alphas * 4 + self.header


_HEADER_ENTRY = 70
"""Bytes that safetensors writes for a tensor beside its name: dtype, shape and offsets."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a step, by what they are for."""

    base: int
    """The frozen model, with scales where it is float8."""
    network: int
    """LoRA and conditions, float32."""
    gradients: int
    optimizer: int
    """The optimiser's state."""
    activations: int
    """What a step keeps for the backward pass and works with at its peak, inputs included."""
    is_gpu: bool
    portions: Portions
    """The blocks that were run."""
    saved: SavedNetwork
    average: int = 0
    """The average of the trained weights (`--ema_decay`)."""
    optimizer_note: str = ""
    """How the optimiser's state was found, where it was not by running it."""

    @property
    def tensors(self) -> int:
        """All tensors at the peak."""
        return self.base + self.network + self.gradients + self.average + self.optimizer + self.activations

    @property
    def workspaces(self) -> int:
        """Of the GPU's libraries, inside what torch measures."""
        return WORKSPACES if self.is_gpu else 0

    @property
    def allocated(self) -> int:
        """What `torch.cuda.max_memory_allocated` will tell."""
        return self.tensors + self.workspaces

    @property
    def crumbs(self) -> int:
        """Margin for what lies between the tensors."""
        return int(CRUMBS * self.activations) if self.is_gpu else 0

    @property
    def reserved(self) -> int:
        """What torch takes from the device: what must be free after the CUDA context is there."""
        return self.allocated + self.crumbs

    @property
    def on_device(self) -> int:
        """What nvidia-smi will tell."""
        return self.reserved + (CONTEXT if self.is_gpu else 0)


def estimate_memory(recipe: Recipe, inputs: StepInputs, *, extrapolate: bool = True) -> Memory:
    """Peak of a recipe's step on a batch like `inputs` (no number of theirs is read), once the optimiser has its state.

    The step is run with two or three of the blocks, and what a block more of each kind adds is added for all others;
    without `extrapolate`, with all of them. Validation needs no more: it keeps nothing for a backward pass.
    """
    run = _runs_on_fakes(recipe)
    dit = empty_dit(run)
    with _cheap_collections(), counted_fakes(recipe.is_gpu) as counter:
        steps = _Static(counter)
        trial = Trial(run, lambda name, shape, dtype: torch.empty(shape, dtype=dtype), dit=dit, told=steps.note)
        batch = inputs.changed(fake_like)
        kinds = trial.kinds(recipe.without_host_memory.activations)  # few blocks are timed later, under their policies
        few = portions(kinds) if extrapolate else Portions(tuple(range(recipe.variant.layers)))
        trial.bucket.clear()
        state, at_step, note = _optimizer_bytes(trial, counter)
        def peak(blocks: Sequence[int]) -> float:
            gc.collect()
            before = counter.live
            counter.reset_peak()
            trial.forward_backward(batch, blocks)
            return counter.peak - before

        inputs_bytes = counter.live - steps.total - (state if not note else 0)
        saved = _saved(trial)
        activations = max(few.total(peak) + max(0, inputs_bytes), at_step)
    if run != recipe and recipe.is_gpu:
        activations = _by_formula(recipe, inputs)
    found = Memory(base=steps.parts["base"], network=steps.parts["network"], gradients=steps.parts["gradients"],
                   optimizer=state, activations=round(activations), is_gpu=recipe.is_gpu, portions=few, saved=saved,
                   average=steps.parts["average"], optimizer_note=note)
    return with_host_memory(found, recipe, inputs)


def with_host_memory(memory: Memory, recipe: Recipe, inputs: StepInputs) -> Memory:
    """`memory` of the recipe without swapped blocks and offloading, less what these move to host memory.

    The step peaks where the backward pass begins, when every input is kept. What the attention of the block in work
    gave is among its own activations.
    """
    samples, _, frames, height, width = inputs.latents.shape
    depth, rows, columns = recipe.variant.patch
    tokens = samples * (frames // depth) * (height // rows) * (width // columns) if recipe.checkpointing else 0
    holding = Holding(recipe.dtype, recipe.fp8)
    plain = memory_need(recipe.variant, holding, tokens)
    moved = replace(holding, swapped=recipe.swapped, ring=recipe.ring, offloads=recipe.offloads,
                    attention=min(recipe.offloaded_attention, 1))
    small = memory_need(recipe.variant, moved, tokens)
    return replace(memory, base=memory.base - plain.weights + small.weights + small.ring,
                   activations=memory.activations - plain.kept + small.kept)


def _runs_on_fakes(recipe: Recipe) -> Recipe:
    """The recipe without what needs real tensors: compilers, and policies that look at single operations."""
    policy = recipe.activations if recipe.activations in ("none", "full") else "full"
    return replace(recipe, compiled=False, activations=policy)


def _by_formula(recipe: Recipe, inputs: StepInputs) -> float:
    """Activations of a compiled or selective step, by the planner's closed form."""
    variant = recipe.variant
    samples, _, *sizes = inputs.latents.shape
    frames, height, width = (size // patch for size, patch in zip(sizes, variant.patch, strict=True))
    step = Step(variant, samples * frames * height * width, recipe.compiled, recipe.own_times)
    return float(step.activations(parse_policies(recipe.activations, variant.layers)))


@contextmanager
def _cheap_collections() -> Iterator[None]:
    """Inside, the garbage collector looks at new objects alone."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _saved(trial: Trial) -> SavedNetwork:
    state = trial.network.state_dict()
    alphas = sum(key.endswith(".alpha") for key in state)
    return SavedNetwork(sum(tensor.numel() for tensor in state.values()) - alphas, alphas,
                        sum(len(key) + _HEADER_ENTRY for key in state))


class _Static:
    """What stays alive after each part of a trial was made."""

    def __init__(self, counter: LiveBytes) -> None:
        self._counter = counter
        self.parts: dict[str, int] = {}
        self.total = 0

    def note(self, part: str) -> None:
        """`part` is there: what is alive more than before belongs to it."""
        gc.collect()
        self.parts[part] = self._counter.live - self.total
        self.total = self._counter.live


def _optimizer_bytes(trial: Trial, counter: LiveBytes) -> tuple[int, int, str]:
    """(bytes of the state, bytes that a step works with beside it, note where it was not run itself)."""
    recipe = trial.recipe
    failure = ""
    if recipe.optimizer_runs_on_fakes:
        before = counter.live
        try:
            trial.make_optimizer(*_as_on_gpu(recipe))
            assert trial.optimizer is not None
            trial.optimizer.step()
        except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
            failure = str(error).splitlines()[0]
            log.debug("the optimiser does not run without numbers: %s", failure)
        else:
            gc.collect()
            state = counter.live - before
            counter.reset_peak()
            live = counter.live
            trial.optimizer.step()
            return state, counter.peak - live, ""
    numbers = [parameter.numel() for parameter in trial.bucket.parameters]
    each = state_bytes_per_number(recipe, median_low(numbers))
    return round(each * sum(numbers)), 0, f"{each:.2f} bytes a number, from a step on one tensor"


def _as_on_gpu(recipe: Recipe) -> list[str]:
    """Arguments that torch chooses by itself on a GPU: all parameters in one call, with temporaries for all of them."""
    taken = {pair.partition("=")[0].strip() for pair in recipe.optimizer_args}
    has_choice = "foreach" in inspect.signature(optimizer_class(recipe.optimizer_type)).parameters
    return ["foreach=True"] if recipe.is_gpu and has_choice and not taken & {"foreach", "fused"} else []


def state_bytes_per_number(recipe: Recipe, numbers: int) -> float:
    """Bytes of optimiser state for each trained number, from a real step on one tensor of that many on the CPU."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        parameter = torch.nn.Parameter(torch.zeros(numbers))
        parameter.grad = torch.full_like(parameter, 1e-3)
        optimizer = build_optimizer(recipe.optimizer_type, [{"params": [parameter], "lr": recipe.learning_rate}],
                                    learning_rate=recipe.learning_rate, arguments=recipe.optimizer_args)
        optimizer.step()
        held = sum(value.numel() * value.element_size() for value in optimizer.state[parameter].values()
                   if isinstance(value, torch.Tensor))
    return held / numbers


@dataclass(frozen=True)
class Saving:
    """An option, and what the run would need with it."""

    option: str
    memory: Memory | None
    """None for an option that was chosen so that it just fits."""


def savings(recipe: Recipe, inputs: StepInputs) -> list[Saving]:
    """What each option that is not taken yet would make of it, and all of them together."""
    changes: dict[str, dict[str, Any]] = {}
    if not recipe.checkpointing:
        changes["--gradient_checkpointing"] = {"activations": "full"}
    if recipe.fp8 is None:
        changes["--fp8_base"] = {"fp8": Fp8Settings()}
    if recipe.optimizer_type.lower() in ("", "adamw") and find_spec("bitsandbytes") is not None:
        changes["--optimizer_type adamw8bit"] = {"optimizer_type": "adamw8bit", "optimizer_args": ()}
    if recipe.checkpointing and not recipe.offloads:
        changes["--gradient_checkpointing_cpu_offload"] = {"offloads": True}
    if recipe.checkpointing and recipe.swapped < recipe.variant.layers > recipe.ring:
        changes[f"--blocks_to_swap {recipe.variant.layers}"] = {"swapped": recipe.variant.layers}
    if len(changes) > 1:
        changes[" ".join(changes)] = {key: value for change in changes.values() for key, value in change.items()}
    trials: dict[tuple[str, ...], Memory] = {}
    found = []
    for option, change in changes.items():
        tried = {name: value for name, value in change.items() if name not in ("swapped", "offloads")}
        if tuple(tried) not in trials:  # what moves to host memory is known without a trial
            trials[tuple(tried)] = estimate_memory(replace(recipe, **tried, swapped=0, offloads=False), inputs)
        found.append(Saving(option, with_host_memory(trials[tuple(tried)], replace(recipe, **change), inputs)))
    return found
