"""How far a variant's LoRA gradients lie from the reference's, block by block, on the demo's model and clips.

The same weights, clips, noise and noise levels for all. A block's error is |g - g'| / |g'| of the vector of all its
LoRA gradients over some batches, one behind the other; `condition` is what the audio condition trains.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gate.learning import Setting, commands_of, facts, gradient_settings, refusing_fallback
from benchmarks.gate.variants import REFERENCE, VARIANTS, YARDSTICK, Variant
from networks.network import Network
from training.config import TrainConfig

BATCHES = 4
Gradients = Mapping[str, Tensor]
"""Number of a block, or `condition` → vector."""


def gradient_lines(setting: Setting, names: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """A line for each moment of the reference's training (`before`, `after`) and each variant."""
    for when in ("before", "after"):
        file = commands_of(setting, VARIANTS[REFERENCE], seed).lora(when)
        yield from compared((YARDSTICK, REFERENCE, *names), lambda one, file=file: demo_gradients(
            setting, one, seed, file), {"model": "demo", "when": when, "seed": seed, **facts(setting)})


def compared(names: Sequence[str], gradients_of: Callable[[Variant], Gradients], about: Mapping[str, Any]
             ) -> Iterator[dict[str, Any]]:
    """A line for each variant that is compared with another one; `gradients_of` a variant is asked once each."""
    known: dict[str, Gradients] = {}
    for name in dict.fromkeys(names):
        variant = VARIANTS[name]
        try:
            with refusing_fallback(variant):
                known[name] = gradients_of(variant)
        except Exception as error:  # noqa: BLE001 - the other rows shall be measured all the same
            yield {"kind": "gradients", **about, "variant": name, "error": f"{type(error).__name__}: {error}"[:300]}
            continue
        if variant.against is not None and variant.against not in known:
            yield {"kind": "gradients", **about, "variant": name, "error": f"there are none of {variant.against}"}
        elif variant.against is not None:
            yield {"kind": "gradients", **about, "variant": name, "against": variant.against,
                   **difference(known[name], known[variant.against])}
        if name not in (REFERENCE, YARDSTICK):
            del known[name]


def difference(found: Gradients, right: Gradients) -> dict[str, Any]:
    """Relative error of each block, and of everything together."""
    by_block = {name: relative(found[name], right[name]) for name in right}
    return {"by_block": by_block, "whole": relative(torch.cat([*found.values()]), torch.cat([*right.values()]))}


def relative(found: Tensor, right: Tensor) -> float:
    """|found - right| / |right|."""
    return ((found - right).double().norm() / right.double().norm()).item()


def demo_gradients(setting: Setting, variant: Variant, seed: int, file: Path) -> Gradients:
    """Of a few batches, as the trainer computes them from the weights of `file`."""
    job, network = job_of(gradient_settings(setting, variant, seed, file), seed)
    parts: list[Gradients] = []
    batches = job.batches(1, step=0, start=0)
    for batch in islice(batches, BATCHES):
        assert batch is not None
        network.zero_grad(set_to_none=True)
        job.loss(batch).total.backward()
        parts.append(by_block(network))
    batches.close()
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def by_block(network: Network) -> Gradients:
    """The gradients that the network holds now, float32 on the CPU."""
    vectors: dict[str, list[Tensor]] = {}
    for path, layer in network.layers.items():
        for parameter in layer.parameters():
            if parameter.grad is not None:
                vectors.setdefault(path.split(".")[1], []).append(parameter.grad.detach().float().flatten().cpu())
    for parameter in network.conditions.parameters():
        if parameter.grad is not None:
            vectors.setdefault("condition", []).append(parameter.grad.detach().float().flatten().cpu())
    return {name: torch.cat(found) for name, found in vectors.items()}


def job_of(config: TrainConfig, seed: int) -> tuple[Any, Network]:
    """The trainer's job for `config`, before its first step, and its network."""
    from common.devices import pick_device
    from training import preflight
    from training.build import build_network, load_base, timestep_settings
    from training.clips import EpochBatches
    from training.job import JobSettings, VideoJob
    from training.launch import set_up_torch
    from training.processes import Processes

    set_up_torch(config.speed, seed)
    plan = preflight.check(config)
    processes = Processes(device=torch.device(pick_device()))
    dit = load_base(config, plan, processes.device)
    network = build_network(config, plan, dit)
    batches = EpochBatches(plan.clips, seed, processes, 0, plan.showing.min_frames)
    job = VideoJob(dit, network, JobSettings(seed, timestep_settings(config), showing=plan.showing),
                   epoch_batches=batches, batches_per_epoch=batches.per_epoch,
                   samples_per_epoch=batches.samples_per_epoch)
    return job, network
