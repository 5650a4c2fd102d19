"""Exponential moving average of trained weights: what a run would have, were its last steps averaged.

average += (1 - decay_t) * (weight - average), decay_t = min(decay, (1 + t) / (10 + t)) after the t-th update. The
warm-up is that of TensorFlow's `ExponentialMovingAverage(num_updates=t)`, as in diffusers' `EMAModel`; without
it the initial weights would stay in the average for about 1 / (1 - decay) steps.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from common.errors import NetworkFileError

PREFIX = "average."


def decay_at(update: int, decay: float) -> float:
    """Share of the average that the `update`-th update (from 1) keeps."""
    return min(decay, (1 + update) / (10 + update))


class Ema:
    """Averages of the trained parameters of a network, float32, on the parameters' device.

    `update` after every optimiser step; `swapped` shows the averages. Nothing here waits for the device.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        """The averages begin as the weights are. `decay` is above 0 and below 1; 0.999 is usual."""
        assert 0 < decay < 1, f"decay {decay}"
        self.decay = decay
        self.updates = 0
        self._weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self._averages = {name: weight.detach().to(torch.float32, copy=True) for name, weight in self._weights.items()}
        self._is_swapped = False

    @torch.no_grad()
    def begin(self) -> None:
        """Begin anew with the weights as they are now."""
        self.updates = 0
        for name, weight in self._weights.items():
            self._averages[name].copy_(weight)

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as they are now into the averages."""
        assert not self._is_swapped, "the averages stand in the network; an update would average them with themselves"
        self.updates += 1
        weights = [weight.detach().float() for weight in self._weights.values()]
        torch._foreach_lerp_([*self._averages.values()], weights, 1 - decay_at(self.updates, self.decay))

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The network has the averages inside the ``with`` block, and its own weights behind it, bit for bit.

        May be nested, and may be left by an exception.
        """
        weights = [weight.detach() for weight in self._weights.values()]
        own = [weight.clone() for weight in weights]
        before, self._is_swapped = self._is_swapped, True
        try:
            torch._foreach_copy_(weights, [*self._averages.values()])
            yield
        finally:
            torch._foreach_copy_(weights, own)
            self._is_swapped = before

    def state(self) -> dict[str, Tensor | float | int]:
        """What a later run needs to go on: `average.<parameter>` (the tensors themselves), `updates`, `decay`."""
        return {**{PREFIX + name: tensor for name, tensor in self._averages.items()},
                "updates": self.updates, "decay": self.decay}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor | float | int]) -> None:
        """Go on from `state`; the decay stays this run's own. NetworkFileError where it is of another network."""
        found = {key.removeprefix(PREFIX): value for key, value in state.items() if isinstance(value, Tensor)}
        odd = sorted(set(found) ^ set(self._averages)) or [
            name for name, average in self._averages.items() if found[name].shape != average.shape]
        if odd or "updates" not in state:
            raise NetworkFileError(f"saved averages (EMA) do not belong to this network: {len(odd)} parameters differ "
                                   f"({', '.join(odd[:4]) or 'no count of updates'}). Go on with the settings of "
                                   "--network_args that the run began with.")
        for name, average in self._averages.items():
            average.copy_(found[name])
        self.updates = int(state["updates"])
