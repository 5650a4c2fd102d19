"""Everything that the next step hangs on, as one saved state, and back again bit for bit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import ConfigError
from common.tensorfile import load_tensors
from common.treefile import load_tree, save_tree
from training.callbacks import RunState
from training.keeping.states import SavedState, write_state
from training.loop import Loop
from training.schedules import set_rates

NETWORK, OPTIMIZER, RUN = "network.safetensors", "optimizer.safetensors", "run.safetensors"


def random_states(device: torch.device) -> dict[str, Any]:
    """States of every global generator of this process."""
    states = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Bring the generators back to `random_states`."""
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


class Snapshot:
    """Saves and restores the parts of a run."""

    def __init__(self, loop: Loop, network: nn.Module, write_network: Callable[[Path], None], *,
                 more: Mapping[str, Any] | None = None) -> None:
        """`write_network` writes the trained weights as they are now, in float32, as a network file.

        `more` are further parts by name, each with `state()`, `load_state(values)`, and `begin()` for other weights to
        begin with (an average of the weights).
        """
        self._loop, self._network, self._write_network = loop, network, write_network
        self._more = dict(more or {})

    @property
    def is_sound(self) -> bool:
        """Whether the weights are those between two steps, and finite.

        A second signal may have come where an average stood in their place.
        """
        return self._loop.is_between_steps and not self._loop.wish.is_urgent and all(
            bool(torch.isfinite(parameter).all()) for parameter in self._loop.job.parameters)

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write the state on the first process; every process must call it, at the same step.

        An OSError is raised on all of them.
        """
        loop = self._loop
        everywhere = loop.processes.gather(random_states(loop.processes.device))
        loop.processes.from_first(lambda: self._write(path, facts, everywhere))

    def _write(self, path: Path, facts: Mapping[str, Any], everywhere: Sequence[Any]) -> None:
        loop = self._loop
        run = {"run": asdict(loop.state), "guard": list(loop.guard.recent), "random": everywhere,
               "callbacks": {one.state_name: one.remembered() for one in loop.callbacks if one.state_name},
               "more": {name: part.state() for name, part in self._more.items()}}
        learning = {"optimizer": loop.optimizer.state_dict(), "schedule": loop.schedule.state_dict()}
        write_state(path, {NETWORK: self._write_network, OPTIMIZER: lambda to: save_tree(to, learning),
                           RUN: lambda to: save_tree(to, run)},
                    {"step": loop.state.step, "epoch": loop.state.epoch,
                     "epochs_done": loop.state.epoch - int(loop.state.is_in_epoch), "total_steps": loop.total_steps,
                     **facts})

    def restore(self, state: SavedState, *, has_new_data: bool = False) -> None:
        """Bring the loop, its callbacks and the network to `state`. ConfigError where it does not fit."""
        loop = self._loop
        self._restore_network(state)
        learning, run = load_tree(state.path / OPTIMIZER), load_tree(state.path / RUN)
        load_optimizer(loop.optimizer, learning["optimizer"], state.path)
        loop.schedule.load_state_dict(learning["schedule"])
        set_rates(loop.optimizer, loop.schedule)
        known = {one.name for one in fields(RunState)}
        loop.state = RunState(**{name: value for name, value in run["run"].items() if name in known})
        if has_new_data:
            loop.state.is_in_epoch = False
        loop.guard.recent = [tuple(pair) for pair in run["guard"]]
        for callback in loop.callbacks:
            if callback.state_name in run["callbacks"]:
                callback.recall(run["callbacks"][callback.state_name])
        for name, part in self._more.items():
            if name in run["more"]:
                part.load_state(run["more"][name])
        everywhere: Sequence[Any] = run["random"]
        if loop.processes.rank < len(everywhere):
            set_random_states(everywhere[loop.processes.rank], loop.processes.device)
        loop.is_resumed = True

    def take_weights(self, state: SavedState) -> None:
        """Begin a run with the trained weights of `state`."""
        self._restore_network(state)
        for part in self._more.values():
            part.begin()

    def _restore_network(self, state: SavedState) -> None:
        tensors, _ = load_tensors(state.path / NETWORK)
        own = self._network.state_dict()
        strange = sorted(own.keys() ^ tensors.keys())
        strange += [key for key in own if key in tensors and (
            own[key].shape != tensors[key].shape
            or (key.endswith(".alpha") and not torch.equal(own[key].cpu(), tensors[key])))]
        if strange:
            raise ConfigError(f"{state.path}: its weights do not fit this network ({len(strange)} differ: "
                              f"{', '.join(strange[:4])}).")
        with torch.no_grad():
            for key, value in own.items():
                value.copy_(tensors[key])


def load_optimizer(optimizer: torch.optim.Optimizer, values: dict[str, Any], path: Path) -> None:
    """`load_state_dict` that keeps every tensor's dtype and bits: torch's own casts states to the weights' dtype."""
    try:
        optimizer.load_state_dict(values)
    except (ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(f"{path}: its optimiser does not fit this run ({error}).") from error
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, parameter in enumerate(parameters):
        saved = values["state"].get(number, {})
        for name, tensor in saved.items():
            loaded = optimizer.state[parameter].get(name)
            if isinstance(tensor, Tensor) and isinstance(loaded, Tensor) and loaded.dtype != tensor.dtype:
                optimizer.state[parameter][name] = tensor.to(loaded.device)
