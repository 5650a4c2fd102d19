"""A training step never asks the device for a number: on torch's `meta` device, which has none, it would fail."""

from dataclasses import replace

import pytest
import torch

from networks.ema import Ema
from networks.lora_wan import create_network
from tests.contracts.test_designs import MIXED, MODES, SAMPLES, SEED, batch_of, conditions_of, every_design
from tests.tiny_dit import tiny_dit
from tests.training.test_job import loss_of
from training.job import JobSettings, VideoJob
from training.optimizers import build_optimizer
from training.parallel import GradientBucket
from training.processes import Processes
from training.regions import FEATURE, RegionWeights
from training.timesteps import TimestepSettings


def job_on_meta(design: str, mode: str) -> VideoJob:
    dit = tiny_dit()
    network = create_network(dit, dim=2, alpha=2, conditions=conditions_of(design, mode)).attach().train()
    dit.to("meta")
    network.to("meta")
    settings = JobSettings(SEED, TimestepSettings(timestep_sampling="shift", weighting_scheme="diffsynth_gauss"),
                           norm_limit=1.0, showing=replace(MIXED, prefix_corruption=0.5),
                           regions=RegionWeights(2, 4, mixture=(0.4, 0.3, 0.3)))
    return VideoJob(dit, network, settings, epoch_batches=lambda epoch, start: iter(()),  # type: ignore[arg-type, return-value]
                    batches_per_epoch=1, samples_per_epoch=SAMPLES, ema=Ema(network, 0.9))


@every_design
@pytest.mark.parametrize("mode", MODES)
def test_a_whole_step_reads_nothing(design: str, mode: str) -> None:
    """Draws, given frames, corruption, dropouts, regions, loss, gradients, clipping, AdamW, norm limits, average."""
    one = job_on_meta(design, mode)
    loaded = batch_of(*range(SAMPLES))
    masks = {name: torch.ones(SAMPLES, 1, *loaded.latents.shape[2:]) for name in ("face", "lip")}
    loaded.features.features[FEATURE] = masks  # type: ignore[index]
    bucket = GradientBucket(one.parameters, Processes())
    optimizer = build_optimizer("adamw", [{"params": one.parameters}], learning_rate=0.1)
    for _ in range(2):
        bucket.clear()
        result = loss_of(one, loaded)
        result.total.backward()  # type: ignore[no-untyped-call]
        bucket.add_loss(result.total, len(result.names))
        queued = bucket.queue_reduce(1.0, limits=(3.0, 4.0), also=[result.per_sample])
        optimizer.step()
        one.after_step()
    assert result.total.is_meta and len(result.sigmas) == SAMPLES
    with pytest.raises((RuntimeError, NotImplementedError), match="[Mm]eta"):
        queued.read()
