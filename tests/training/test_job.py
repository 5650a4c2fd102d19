"""A batch's loss and gradient, and what conditions are shown."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from common.features import FeatureBatch
from dataset.batches import LoadedBatch
from networks.ema import Ema
from networks.layer import Dropouts
from networks.lora_wan import create_network
from tests.tiny_dit import tiny_dit
from training.job import JobSettings, VideoJob, with_first_frame_shown
from training.passes import BatchLoss
from training.timesteps import TimestepSettings
from wan.conditions.omniavatar_add import OmniAvatarAdd, OmniAvatarSettings


def clip(name: str, *, reference: int | None = 0) -> Any:
    """What the job reads of a clip."""
    item = SimpleNamespace(reference_frame=lambda span: reference)
    return SimpleNamespace(name=name, item=item, span=SimpleNamespace(start=0))


def batch(indices: list[int], *, frames: int = 3) -> LoadedBatch:
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 16, frames, 4, 6, generator=draws)
    audio = torch.randn(4, 4 * frames - 3, 3, 4, generator=draws)
    text = [torch.randn(3 + i, 12, generator=draws) for i in range(4)]
    features = FeatureBatch(
        features={"audio": {"states": audio[indices]}, "text": {"hidden": [text[i] for i in indices]},
                  "reference_latents": {"latents": latents[indices][:, :, :1]}}, frames=4 * frames - 3, fps=25.0)
    return LoadedBatch(latents[indices], features, tuple(clip(f"clip {i}") for i in indices), tuple(indices),
                       torch.ones(len(indices)), len(indices), 1, 0)


def job(**more: Any) -> VideoJob:
    dit = tiny_dit()
    condition = OmniAvatarAdd(OmniAvatarSettings(audio_hidden=8, audio_states=3, audio_width=4), dit.variant)
    torch.manual_seed(3)
    for parameter in condition.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    network = create_network(dit, dim=2, alpha=2, conditions={"omniavatar_add": condition}).attach().train()
    with torch.no_grad():
        for layer in network.layers.values():
            layer.lora_up.weight.normal_(std=0.02, generator=torch.Generator().manual_seed(5))
    rule = TimestepSettings(timestep_sampling="shift", discrete_flow_shift=3.0)
    settings = JobSettings(seed=1, timesteps=rule, **more)
    return VideoJob(dit, network, settings, epoch_batches=lambda epoch, start: iter(()), batches_per_epoch=1,
                    samples_per_epoch=4)


def loss_of(one: VideoJob, loaded: LoadedBatch, epoch: int = 1) -> BatchLoss:
    """Of a batch of this epoch, as the loop asks for it."""
    return one.loss(one.ready(loaded, one.epoch(epoch, 0)))


def gradients(one: VideoJob, *parts: list[int]) -> tuple[Tensor, list[float]]:
    for parameter in one.parameters:
        parameter.grad = None
    losses: list[float] = []
    for indices in parts:
        result = loss_of(one, batch(indices))
        result.total.backward()
        losses += result.per_sample.tolist()
    return torch.cat([p.grad.flatten() for p in one.parameters if p.grad is not None]), losses


def test_four_batches_of_one_have_the_gradient_of_one_batch_of_four() -> None:
    one = job()
    whole, losses = gradients(one, [0, 1, 2, 3])
    parts, again = gradients(one, [0], [1], [2], [3])
    assert again == pytest.approx(losses, rel=1e-5)
    assert (whole - parts).abs().max() <= 1e-5 * whole.abs().max()


def test_stratified_draws_hang_on_the_place_too() -> None:
    one = job(timestep_buckets=2)
    assert gradients(one, [0, 1], [2, 3])[1] == pytest.approx(gradients(one, [0, 1, 2, 3])[1], rel=1e-5)


def test_losses_name_the_clips_and_change_with_the_epoch() -> None:
    one = job()
    first = loss_of(one, batch([2, 0]))
    assert first.names == ("clip 2", "clip 0")
    assert not torch.equal(loss_of(one, batch([2, 0]), epoch=2).per_sample, first.per_sample)


def test_the_first_frame_is_given_and_still_where_it_is_the_reference() -> None:
    loaded = batch([0, 1])
    clips = (clip("own", reference=0), clip("other", reference=None))
    shown = with_first_frame_shown(loaded.features, loaded.latents, clips)
    assert shown.given_mask is not None and shown.first_is_still is not None
    assert shown.given_mask[:, 0, :, 0, 0].tolist() == [[1, 0, 0], [1, 0, 0]]
    assert shown.first_is_still.tolist() == [True, False]


def test_a_picture_keeps_its_only_frame_to_be_learned() -> None:
    loaded = batch([0], frames=1)
    assert with_first_frame_shown(loaded.features, loaded.latents, loaded.items).given_mask is None
    assert loss_of(job(), loaded).per_sample.isfinite().all()


def test_given_frames_are_not_learned() -> None:
    one, loaded = job(), batch([0, 1])
    before = loss_of(one, loaded).per_sample
    louder = loaded.latents.clone()
    louder[:, :, 0] += 100
    after = loss_of(one, replace(loaded, latents=louder)).per_sample
    assert (after < 100).all() and not torch.equal(before, after)


def test_dropouts_of_the_network_repeat_with_the_batch_whatever_was_drawn_before() -> None:
    """So that a resumed run drops what the straight one did."""
    one = job()
    for layer in one.network.layers.values():
        layer.dropouts = Dropouts(activation=0.3, rank=0.3, module=0.3)
    torch.manual_seed(1)
    first, losses = gradients(one, [0, 1])
    torch.manual_seed(2)
    torch.rand(7)
    again, same = gradients(one, [0, 1])
    assert same == losses and torch.equal(again, first)
    one.network.eval()
    assert gradients(one, [0, 1])[1] != losses, "nothing was dropped; the test proves nothing"
    one.network.train()
    assert not torch.equal(gradients(one, [1, 0])[0], first)


def test_the_average_takes_in_the_weights_after_the_norm_limit() -> None:
    one = job(norm_limit=1e-3)
    one.ema = Ema(one.network, 0.9)
    before = {name: weight.detach().clone() for name, weight in one.network.named_parameters()}
    one.after_step()
    state = one.ema.state()
    for name, weight in one.network.named_parameters():
        expected = torch.lerp(before[name], weight.detach(), 1 - 2 / 11)
        assert torch.allclose(state[f"average.{name}"], expected, atol=1e-7)
    up = next(name for name in before if "lora_up" in name)
    assert one.network.get_parameter(up).norm() < 0.9 * before[up].norm()
